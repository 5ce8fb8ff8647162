"""The embedded glyph world: a small, real Stable Diffusion pipeline with known truth, and its judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .captions import captions
from .world import FIRST

SHAPES = tuple(FIRST.shapes)
STYLES = tuple(FIRST.styles)
COLORS = tuple(FIRST.colors)
BACKGROUNDS = tuple(FIRST.backgrounds)
ATTRIBUTE_WORDS = FIRST.attribute_words
PLAIN_STYLE = STYLES[0]
"""The artist whose pictures look like those without an artist."""

WEIGHTS = Path(__file__).parent / "weights"


def load_pipeline(folder: str | Path = WEIGHTS) -> Any:
    """The shipped world as a stock `StableDiffusionPipeline` in float32, offline."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float32)  # transformers 5 keeps the files' float16 otherwise


def load_judge(folder: str | Path = WEIGHTS) -> Any:
    """The judge: `judge(images)` -> a list of answers for "shape", "style", "color", "background", "attribute"."""
    import json

    from safetensors import safe_open

    from .judge import Judge, JudgeNet, heads_of
    from .world import WORLDS

    with safe_open(Path(folder) / "judge.safetensors", framework="pt") as file:
        world = WORLDS[json.loads(file.metadata()["erasepro.recipe"])["world"]]
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    net = JudgeNet(heads_of(world))
    net.load_state_dict(weights)
    return Judge(net, heads_of(world))


__all__ = [
    "ATTRIBUTE_WORDS", "BACKGROUNDS", "COLORS", "PLAIN_STYLE", "SHAPES", "STYLES", "captions", "load_judge",
    "load_pipeline",
]  # fmt: skip
