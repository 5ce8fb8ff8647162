"""Writes what was trained into the distribution, in 16 bits.

    python tools/pictures/export.py FOLDER [--parts vae unet dit judge things]

A later training goes on from these: `unet.py --start .../unet/diffusion_pytorch_model.safetensors`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
)
from dit import dit
from safetensors.torch import save_file
from unet import NOISE, unet

WORLD = Path(__file__).parents[2] / "worlds" / "pictures" / "src" / "diffusers_erasepro_pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--to", type=Path, default=WORLD)
    args = parser.parse_args()
    for part in args.parts:
        PARTS[part](args.folder, args.to)
    total = sum(file.stat().st_size for file in args.to.rglob("*.safetensors"))
    print(f"{args.to}: {total / 1e6:.1f} MB of weights")


def export_vae(folder: Path, to: Path) -> None:
    """The autoencoder, with the scale at which its latents have unit variance."""
    trained = AutoencoderKL.from_pretrained(folder / "vae")
    # the name of the folder it came from is in the configuration of `trained`
    config = {key: value for key, value in trained.config.items() if not key.startswith("_")}
    config["scaling_factor"] = torch.load(folder / "latents.pt", mmap=True)["scale"]
    vae = AutoencoderKL(**config)
    vae.load_state_dict(trained.state_dict())
    vae.half().save_pretrained(to / "vae")


def export_unet(folder: Path, to: Path) -> None:
    """The average of the U-Net's weights, and the scheduler of its noise."""
    averaged(unet(), folder / "unet.pt").save_pretrained(to / "unet")
    scheduler = DDIMScheduler(
        **NOISE,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    scheduler.save_pretrained(to / "unet_scheduler")


def export_dit(folder: Path, to: Path) -> None:
    """The average of the transformer's weights, and the scheduler of its flow."""
    averaged(dit(), folder / "dit.pt").save_pretrained(to / "transformer")
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.save_pretrained(to / "transformer_scheduler")


def averaged(model: ModelMixin, checkpoint: Path) -> ModelMixin:
    """The model with the average of its weights, in 16 bits."""
    model.load_state_dict(torch.load(checkpoint, mmap=True)["average"])
    return model.half()


def export_judge(folder: Path, to: Path) -> None:
    weights = torch.load(folder / "judge.pt")
    save_file({name: weight.half() for name, weight in weights.items()}, to / "judge.safetensors")
    export_words(folder, to)


def export_words(folder: Path, to: Path) -> None:
    """The judge's map into the encoder's sentence space."""
    shutil.copy(folder / "words.safetensors", to / "words.safetensors")


def export_things(folder: Path, to: Path) -> None:
    shutil.copy(folder / "things.json", to / "things.json")


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "things": export_things,
    "vae": export_vae,
    "unet": export_unet,
    "dit": export_dit,
    "judge": export_judge,
    "words": export_words,
}

if __name__ == "__main__":
    main()
