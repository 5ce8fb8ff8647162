"""Latents and text states of captioned scenes, so that a denoiser trains on tensors alone.

    python tools/pictures/latents.py FOLDER [--captions 24000] [--two 0.15] [--seed 1]

Writes `latents.pt` into FOLDER, which holds the pictures of `icons.py`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from scenes import Pictures, Scene, things_of
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, BertModel

from diffusers_erasepro.pictures.captions import TRAINED, written
from diffusers_erasepro.pictures.encoder import LENGTH, encoder_folder

BATCH = 64
UNSCALED = 0.18215
"""The scaling factor of an `AutoencoderKL` that was told none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=int, default=24_000)
    parser.add_argument("--two", type=float, default=0.15, help="share of scenes with two things")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    pictures = Pictures(args.folder)
    hands = {thing: entry["hands"] for thing, entry in things_of(args.folder).items()}
    captions = written(hands, args.captions, seed=args.seed, phrasing=TRAINED, two=args.two)
    rng = random.Random(args.seed)
    scenes = []
    for caption in captions:
        both = set.intersection(*(set(hands[thing]) for thing in caption.things))
        scenes.append(pictures.scene(caption, sorted(both), rng))
    latents = encoded_scenes(pictures, scenes, args.folder / "vae")
    # "" is the text of classifier-free guidance
    states, masks = encoded_texts([scene.caption.text for scene in scenes] + [""])
    scale = scale_of(latents, args.folder / "vae")
    kept = {"latents": latents, "states": states, "masks": masks, "scale": scale}
    torch.save(kept, args.folder / "latents.pt")
    print(f"{len(latents)} scenes, scale {scale:.4f}, at most {masks.sum(1).max()} tokens")


def scale_of(latents: Tensor, autoencoder: Path) -> float:
    """What gives the latents unit variance; an exported autoencoder has it and keeps it."""
    scale = AutoencoderKL.load_config(autoencoder)["scaling_factor"]
    return 1 / latents.float().std().item() if scale == UNSCALED else scale


@torch.no_grad()
def encoded_scenes(pictures: Pictures, scenes: list[Scene], autoencoder: Path) -> Tensor:
    """`(n, 8, 8, 8)` half-precision means of the autoencoder's posterior."""
    vae = AutoencoderKL.from_pretrained(autoencoder).float().eval()
    latents = []
    for start in tqdm(range(0, len(scenes), BATCH), "latents"):
        x = pictures.drawn(scenes[start : start + BATCH])
        latents.append(vae.encode(x).latent_dist.mean.half())
    return torch.cat(latents)


@torch.no_grad()
def encoded_texts(texts: list[str]) -> tuple[Tensor, Tensor]:
    """`(n, 32, 384)` half-precision last hidden states, `(n, 32)` which positions are text."""
    folder = encoder_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = BertModel.from_pretrained(folder).eval()
    states = []
    masks = []
    for start in tqdm(range(0, len(texts), BATCH), "texts"):
        batch = tokenizer(
            texts[start : start + BATCH],
            padding="max_length",
            max_length=LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        states.append(encoder(**batch).last_hidden_state.half())
        masks.append(batch.attention_mask.bool())
    return torch.cat(states), torch.cat(masks)


if __name__ == "__main__":
    main()
