"""The embedded glyph world: a small, real Stable Diffusion pipeline, and its judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.kinds import Kind, find_kind
from .captions import captions
from .world import FIRST

SHAPES = tuple(FIRST.shapes)
STYLES = tuple(FIRST.styles)
COLORS = tuple(FIRST.colors)
BACKGROUNDS = tuple(FIRST.backgrounds)
ATTRIBUTE_WORDS = FIRST.attribute_words
PLAIN_STYLE = STYLES[0]
"""The artist whose images look like those without an artist."""

WEIGHTS = Path(__file__).parent / "weights"
VIDEO = Path(__file__).parent / "video"
TEMPLATES = Path(__file__).parent / "templates"


def templates(field: str) -> Kind:
    """What this world's captions say around a "shape", a "style" or an "attribute".

    For `Concept(..., templates=glyphs.templates("shape"))`; the kinds for everyday words work too.
    """
    return find_kind(str(TEMPLATES / f"{field}.toml"))


def load_pipeline(folder: str | Path = WEIGHTS) -> Any:
    """The shipped world as a stock `StableDiffusionPipeline` in float32, offline."""
    from diffusers import StableDiffusionPipeline

    from ..modules.widening import to_float32

    pipe = StableDiffusionPipeline.from_pretrained(
        folder, local_files_only=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    return to_float32(pipe)  # transformers 5 keeps the files' float16 otherwise


def load_judge(folder: str | Path = WEIGHTS) -> Any:
    """`judge(images)` -> a list of answers per question.

    The questions: "shape", "style", "color", "background", "attribute", "second".
    """
    import json

    from safetensors import safe_open

    from .judge import Judge, JudgeNet, heads_of
    from .world import WORLDS

    with safe_open(Path(folder) / "judge.safetensors", framework="pt") as file:
        world = WORLDS[json.loads(file.metadata()["erasepro.recipe"])["world"]]
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    net = JudgeNet(heads_of(world)).float()
    net.load_state_dict(weights)
    return Judge(net, heads_of(world))


def load_clip(folder: str | Path = WEIGHTS) -> Any:
    """Images and captions in one space.

    `.images(list of PIL images)` and `.texts(list of str)` give unit vectors `(n, 64)`.
    """
    from safetensors.torch import load_file

    from .clip import ClipNet, GlyphCLIP

    still = load_pipeline(folder)
    net = ClipNet(still.text_encoder.config.hidden_size).float()
    net.load_state_dict(load_file(Path(folder) / "clip.safetensors"))
    return GlyphCLIP(net, still.text_encoder, still.tokenizer)


def load_video_pipeline(folder: str | Path = VIDEO) -> Any:
    """Moving glyphs as a stock `AnimateDiffPipeline` in float32, offline.

    8 frames of 32 px, on top of the shipped still world.
    """
    import torch
    from diffusers import AnimateDiffPipeline, MotionAdapter
    from safetensors.torch import load_file
    from transformers import CLIPTextModel

    from ..modules.widening import quiet_casts

    folder = Path(folder)
    still = load_pipeline()
    # What the file does not hold stays the still world's.
    still.unet.load_state_dict(load_file(folder / "unet.safetensors"), strict=False)
    with quiet_casts():
        pipe = AnimateDiffPipeline(
            still.vae,
            CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
            still.tokenizer,
            still.unet,
            MotionAdapter.from_pretrained(folder / "motion_adapter", torch_dtype=torch.float32),
            still.scheduler,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_clip_judge() -> Any:
    """`judge(clips)` -> "shape", "color", "background" per frame, "motion" per clip."""
    from .clip_judge import ClipJudge

    return ClipJudge(load_judge())


__all__ = [
    "ATTRIBUTE_WORDS",
    "BACKGROUNDS",
    "COLORS",
    "PLAIN_STYLE",
    "SHAPES",
    "STYLES",
    "captions",
    "load_clip",
    "load_clip_judge",
    "load_judge",
    "load_pipeline",
    "load_video_pipeline",
    "templates",
]
