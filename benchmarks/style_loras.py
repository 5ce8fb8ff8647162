"""An erasure beside style LoRAs trained here with peft.

Three LoRAs, loaded with stock `load_lora_weights`, draw captions that name no artist in an
artist's style. "unedited" is the LoRA alone; "ours" was made without it, "ours, refit" with it on.
Prompts are held-out phrasings without an artist; ACC_near says how often the style is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tqdm.auto import trange
from transformers import CLIPTextModel

from diffusers_erasepro import ErasureAdapter, ErasureSpec, erase
from diffusers_erasepro.config.options import OtherMethod
from diffusers_erasepro.evaluation.suites import Case, Cases
from diffusers_erasepro.glyphs.captions import mention, phrase
from diffusers_erasepro.glyphs.concept_prompts import prompts_with, prompts_without
from diffusers_erasepro.glyphs.render import render
from diffusers_erasepro.glyphs.world import World, sample_scene
from diffusers_erasepro.prompts.tokens import token_ids
from harness import Cell, Experiment, main, parse_arguments
from worlds import as_cases, glyph_world

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
RANK = 8
STEPS = 300
BATCH = 32


def images_as_tensor(images: Any) -> torch.Tensor:
    """Images `(n, h, w, 3)` of bytes as `(n, 3, h, w)` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


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


def unsigned(pairs: Sequence[tuple[str, Any]], world: World) -> list[tuple[str, Any]]:
    """The same scenes, told without an artist."""
    rng = np.random.default_rng(7)
    scenes = [replace(scene, style=None) for _, scene in pairs]
    return [(phrase(world, scene, rng, held_out=True), scene) for scene in scenes]


def train(
    style: Style, world: World, load_pipeline: Callable[[], Any], folder: Path, seed: int
) -> Path:
    """Train the LoRA with peft, as diffusers' own scripts do; a folder that is there is kept."""
    if folder.exists():
        return folder
    pipe = load_pipeline()
    rng = np.random.default_rng(seed)
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
    weights = []
    for part in parts:
        weights += [weight for weight in part.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.0)
    for _ in trange(STEPS, desc=style.name, mininterval=5):
        scenes = [
            replace(sample_scene(world, rng, second=0.0), style=style.artist) for _ in range(BATCH)
        ]
        texts = [phrase(world, replace(mention(s, rng), style=None), rng) for s in scenes]
        with torch.no_grad():
            pixels = images_as_tensor(np.stack([render(world, scene, rng) for scene in scenes]))
            x = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        noise = torch.randn_like(x)
        t = torch.randint(1000, (BATCH,))
        states = pipe.text_encoder(token_ids(pipe.tokenizer, texts)).last_hidden_state
        out = pipe.unet(pipe.scheduler.add_noise(x, noise, t), t, states).sample
        loss = torch.nn.functional.mse_loss(out, pipe.scheduler.get_velocity(x, noise, t))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    layers = [get_peft_model_state_dict(p) if t else None for p, t in parts.items()]
    if layers[1]:
        # diffusers' own converter knows attention alone; these names it reads for every linear
        names = (("lora_A", "lora_linear_layer.down"), ("lora_B", "lora_linear_layer.up"))
        for old, new in names:
            layers[1] = {k.replace(old, new): v for k, v in layers[1].items()}
    StableDiffusionPipeline.save_lora_weights(folder, *layers)
    return folder


@contextmanager
def styled(pipe: Any, *, folders: Sequence[Path], scale: float) -> Iterator[None]:
    """The LoRAs on, each at `scale`, for the time of the block."""
    names = [f"style{i}" for i in range(len(folders))]
    for folder, name in zip(folders, names, strict=True):
        pipe.load_lora_weights(folder, adapter_name=name)
    pipe.set_adapters(names, [scale] * len(names))
    try:
        yield
    finally:
        pipe.unload_lora_weights()


def erase_under_lora(pipe: Any, spec: ErasureSpec) -> ErasureAdapter:
    """The erasure solved with the LoRA on, as `refit_erasure` does."""
    adapter = erase(pipe, spec)
    # a record of another method, as a load checks what `erase` made, and without the LoRA
    return replace(adapter, options=OtherMethod("erase under a LoRA"))


def unsigned_cases(
    spec: ErasureSpec, n: int, seed: int, *, world: World, artists: Sequence[str]
) -> Cases:
    """Captions without an artist: of the concept, of others, and of others for the style."""
    (concept,) = spec.concepts
    asked = prompts_with(concept, n, seed=seed, held_out=True, world=world)
    others = prompts_without([concept], n, seed=seed, held_out=True, world=world)
    target = as_cases(unsigned(asked, world), concept, "shape")
    other = as_cases(unsigned(others, world))
    near = []
    for i, case in enumerate(other):
        near.append(Case(case.text, {"style": artists[i % len(artists)]}))
    return {"target": target, "near": near, "other": other}


if __name__ == "__main__":
    args = parse_arguments(48, 1, __doc__)
    world = glyph_world(args.world, args.folder)
    pipe = world.load_pipeline()
    concept = next(iter(world.concepts.values()))
    adapter = erase(pipe, ErasureSpec((concept,), preserve=world.captions))
    folder = Path("runs/style-loras")
    every = styles(world.words, pipe.text_encoder)
    settings: dict[str, tuple[list[Style], float]] = {}
    for style in every:
        settings |= {f"{style.name}, scale {x}": ([style], x) for x in (0.3, 1.0, 1.5)}
    settings["the first two together"] = (every[:2], 0.7)
    cells = {}
    for name in args.cells or settings:
        some, scale = settings[name]
        trained = []
        for style in some:
            path = folder / style.name.replace(" ", "-")
            train(style, world.words, world.load_pipeline, path, args.seed + every.index(style))
            trained.append(path)
        cases = partial(unsigned_cases, world=world.words, artists=[style.artist for style in some])
        setting = partial(styled, folders=trained, scale=scale)
        cells[name] = Cell((concept,), world.suite(cases, name), setting)
    methods = {"ours": lambda pipe, spec: adapter, "ours, refit": erase_under_lora}
    columns = ("ACC_e", "ACC_ctx", "ACC_s", "ACC_near", "mse")
    main(
        Experiment("style-loras", world, cells, methods, args.n, args.seed, __doc__, columns),
        args,
    )
