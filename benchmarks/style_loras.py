"""The numbers of docs/style-loras.md: an erasure beside style LoRAs trained here with peft, in either order."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tqdm.auto import tqdm, trange
from transformers import CLIPTextModel

from common import Pairs, draw, prompts_with, prompts_without, provenance, rate, wilson
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.glyphs.captions import mention, phrase
from diffusers_erasepro.glyphs.render import render
from diffusers_erasepro.glyphs.world import WORLDS, World, sample_scene
from diffusers_erasepro.prompts.pairs import token_ids
from first_light import concepts_of
from train import to_tensor  # tools/glyphs, put on the path by common

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
RANK, STEPS, BATCH = 8, 300, 32


@dataclass(frozen=True)
class Style:
    """A LoRA that draws captions without an artist as `artist` does."""

    name: str
    artist: str
    unet: Sequence[str]
    encoder: Sequence[str] = ()


ARTISTS = {
    "first": ("Tilo Kern", "Tessa Kerr", "Odo Brandt"),
    "second": ("Ivo Plane", "Rolf Stein", "Lene Duval"),
}


def styles(world: World, encoder: CLIPTextModel) -> list[Style]:
    """The three LoRAs, each for an artist of this world."""
    last = encoder.config.num_hidden_layers - 1
    edited = (
        "encoder.layers.0.mlp.fc1",
        "encoder.layers.0.mlp.fc2",
        f"encoder.layers.{last}.mlp.fc2",
    )
    names = ("UNet only", "UNet + text encoder", "just the edited linears + UNet")
    targets = ((), ("q_proj", "v_proj"), edited)  # what the default erasure of a shape edits
    return [
        Style(*some, ATTENTION, also)
        for *some, also in zip(names, ARTISTS[world.name], targets, strict=True)
    ]


def unsigned(pairs: Pairs, world: World) -> Pairs:
    """The same scenes, told without an artist."""
    rng = np.random.default_rng(7)
    scenes = [replace(scene, style=None) for _, scene in pairs]
    return [(phrase(world, scene, rng, held_out=True), scene) for scene in scenes]


def train(style: Style, world: World, weights_of: Path, folder: Path, seed: int) -> Path:
    """Train the LoRA with peft, as diffusers' own scripts do, and save it; a folder that is there is taken as it is."""
    if folder.exists():
        return folder
    pipe, rng = glyphs.load_pipeline(weights_of), np.random.default_rng(seed)
    torch.manual_seed(seed)
    parts = {pipe.unet: style.unet, pipe.text_encoder: style.encoder}
    for part, targets in parts.items():
        part.requires_grad_(False)
        if targets:
            part.add_adapter(
                LoraConfig(
                    r=RANK,
                    lora_alpha=RANK,
                    target_modules=list(targets),
                    init_lora_weights="gaussian",
                )
            )
    weights = [w for part in parts for w in part.parameters() if w.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.0)
    for _ in trange(STEPS, desc=style.name, mininterval=5):
        scenes = [
            replace(sample_scene(world, rng, second=0.0), style=style.artist) for _ in range(BATCH)
        ]
        texts = [phrase(world, replace(mention(s, rng), style=None), rng) for s in scenes]
        with torch.no_grad():
            pixels = to_tensor(np.stack([render(world, scene, rng) for scene in scenes]))
            x = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        noise, t = torch.randn_like(x), torch.randint(1000, (BATCH,))
        states = pipe.text_encoder(token_ids(pipe.tokenizer, texts)).last_hidden_state
        out = pipe.unet(pipe.scheduler.add_noise(x, noise, t), t, states).sample
        loss = torch.nn.functional.mse_loss(out, pipe.scheduler.get_velocity(x, noise, t))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    layers = [get_peft_model_state_dict(p) if t else None for p, t in parts.items()]
    if layers[
        1
    ]:  # diffusers' own converter knows attention alone; these names it reads for every linear
        names = (("lora_A", "lora_linear_layer.down"), ("lora_B", "lora_linear_layer.up"))
        for old, new in names:
            layers[1] = {k.replace(old, new): v for k, v in layers[1].items()}
    StableDiffusionPipeline.save_lora_weights(folder, *layers)
    return folder


@contextmanager
def styled(pipe: Any, folders: Sequence[Path], scale: float) -> Iterator[None]:
    """The LoRAs on, each at `scale`, for the time of the block."""
    names = [f"style{i}" for i in range(len(folders))]
    for folder, name in zip(folders, names, strict=True):
        pipe.load_lora_weights(folder, adapter_name=name)
    pipe.set_adapters(names, [scale] * len(names))
    try:
        yield
    finally:
        pipe.unload_lora_weights()


def bits(pipe: Any) -> dict[str, torch.Tensor]:
    """Base weights of the text encoder by stock name."""
    state = pipe.text_encoder.state_dict()
    return {k.replace(".base_layer", ""): v.clone() for k, v in state.items() if "lora_" not in k}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@dataclass
class Bench:
    pipe: Any
    judge: Any
    adapter: ErasureAdapter
    concept: Concept
    n: int
    seed: int
    world: World

    def __post_init__(self) -> None:
        asked = {"seed": self.seed, "held_out": True, "world": self.world}
        self.targets = unsigned(prompts_with(self.concept, self.n, **asked), self.world)
        self.others = unsigned(prompts_without([self.concept], self.n, **asked), self.world)
        with self.loaded():
            self.first = bits(self.pipe)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        self.pipe.load_erasure_adapter(self.adapter, adapter_name="bench")
        try:
            yield
        finally:
            self.pipe.unload_erasure_adapters()

    def told(self, pairs: Pairs) -> dict[str, list]:
        return self.judge(draw(self.pipe, pairs, seed=self.seed))

    def row(self, label: str, artists: Sequence[str], folders: Sequence[Path], scale: float) -> str:
        def kept(told: dict[str, list]) -> float:
            return sum(rate(told, "style", artist) for artist in artists)

        with styled(self.pipe, folders, scale):
            alone, shown = self.told(self.others), self.told(self.targets)
            with self.loaded():
                lora_first = bits(self.pipe)
                told, style = self.told(self.targets), kept(self.told(self.others))
                before = self.pipe.verify_erasure().residual
                self.pipe.refit_erasure()
                after, refit = self.pipe.verify_erasure().residual, self.told(self.targets)
        with self.loaded():
            with styled(self.pipe, folders, scale):
                order = same(bits(self.pipe), lora_first)
                self.pipe.refit_erasure()
            self.pipe.refit_erasure()
            back = same(bits(self.pipe), self.first)
        word = self.concept.target
        low, high = wilson(rate(told, "shape", word), self.n)
        tqdm.write(f"{label} {scale}")
        return (
            f"| {label} | {scale} | {rate(shown, 'shape', word):.2f} | "
            f"{rate(told, 'shape', word):.3f} ({low:.2f} to {high:.2f}) | {rate(refit, 'shape', word):.3f} | "
            f"{kept(alone):.3f} | {style:.3f} | {before:.1e} | {after:.1e} | "
            f"{'same' if order else '**differ**'} | {'same' if back else '**differ**'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=48, help="images per cell")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--world", choices=sorted(WORLDS), default="first")
    parser.add_argument(
        "--folder", type=Path, default=glyphs.WEIGHTS, help="where that world's weights are"
    )
    parser.add_argument(
        "--loras",
        type=Path,
        default=Path("runs/style-loras"),
        help="trained here where they are not there yet",
    )
    parser.add_argument("--page", type=Path, default=Path("docs/style-loras.md"))
    args = parser.parse_args()
    where, world, pipe = (
        provenance(args.seed),
        WORLDS[args.world],
        erasable(glyphs.load_pipeline(args.folder)),
    )
    every = styles(world, pipe.text_encoder)
    folders = [
        train(s, world, args.folder, args.loras / s.name.replace(" ", "-"), args.seed + i)
        for i, s in enumerate(every)
    ]
    concept = concepts_of(world)[0][1]
    adapter = erase(
        pipe, ErasureSpec((concept,), preserve=tuple(glyphs.captions(400, seed=0, world=world)))
    )
    bench = Bench(pipe, glyphs.load_judge(args.folder), adapter, concept, args.n, args.seed, world)
    rows = [
        bench.row(style.name, [style.artist], [folder], scale)
        for style, folder in zip(every, folders, strict=True)
        for scale in (0.3, 1.0, 1.5)
    ]
    rows.append(
        bench.row("the first two together", [s.artist for s in every[:2]], folders[:2], 0.7)
    )
    args.page.write_text(
        "\n".join(
            [
                f"# An erasure beside style LoRAs, on the {world.name} world",
                "",
                f"`python benchmarks/style_loras.py --world {world.name}` wrote this page: {where};",
                f"{args.n} images per cell, 15 steps, guidance 3.",
                f"Three LoRAs (rank {RANK}, {STEPS} steps of {BATCH} pictures, peft, loaded with stock `load_lora_weights`) draw",
                f"captions that name no artist in an artist's style. The erasure is {concept.target} -> {concept.anchor}, at default",
                "settings. Prompts are",
                "held-out phrasings without an artist. Residual: worst listed one, on the live modules with the",
                "LoRA on; fp32 allows 1e-5.",
                "",
                "| LoRA | scale | target drawn, LoRA alone | target drawn, erased (95 %) | after refit | style, LoRA alone | "
                "style, erased | residual | after refit | LoRA first or erasure first: base weights | LoRA gone, refit: first bits |",
                "|---|---|---|---|---|---|---|---|---|---|---|",
                *rows,
                "",
            ]
        )
    )


if __name__ == "__main__":
    main()
