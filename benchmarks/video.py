"""Shapes and motions erased from moving glyphs, on held-out prompts. An image here is a whole clip.

A clip shows what most of its frames show, and moves as its track does. The other prompts name
another shape and none of the four concepts. r and d are the noise predictions of whole clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from diffusers import AnimateDiffPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from PIL import Image

from diffusers_erasepro import Concept, ErasureSpec, erase, glyphs
from diffusers_erasepro.evaluation.suites import Case, Cases
from diffusers_erasepro.glyphs.clips import (
    FRAMES,
    Clip,
    caption_of,
    captioned_clips,
    mention_clip,
    sample_clip,
)
from diffusers_erasepro.glyphs.world import FIRST
from harness import Cell, Experiment, main, parse_arguments
from worlds import BenchWorld

CONCEPTS = {
    "star": ("shape", Concept("star", "circle")),
    "heart": ("shape", Concept("heart", "triangle")),
    "rising": ("motion", Concept("rising", "resting", templates=glyphs.templates("attribute"))),
    "quobbling": (
        "motion",
        Concept("quobbling", "resting", templates=glyphs.templates("attribute")),
    ),
}
CHAINS = ((0, -1), (1, -1), (2, -1), (3, -1), (-1,), (0, "kv"), (1, "kv"))
"""The fixed choices beside auto's: one early block, and one place that closes what it leaves."""
COLUMNS = ("ACC_e", "ACC_a", "ACC_ctx", "ACC_s", "mse", "r", "d")


class ClipPipeline(AnimateDiffPipeline):
    """The stock pipeline, but a clip comes as one image: its frames side by side."""

    def __call__(self, *args: Any, **kwargs: Any) -> StableDiffusionPipelineOutput:
        clips = super().__call__(*args, num_frames=FRAMES, **kwargs).frames
        return StableDiffusionPipelineOutput([join_frames(clip) for clip in clips], None)


def join_frames(frames: Sequence[Image.Image]) -> Image.Image:
    """Frames side by side."""
    return Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames], axis=1))


def split_frames(strip: Image.Image) -> list[Image.Image]:
    """The frames of `join_frames`."""
    return [Image.fromarray(part) for part in np.split(np.asarray(strip), FRAMES, axis=1)]


class ClipJudge:
    """The judge of clips as `evaluate` asks it: one answer per clip."""

    def __init__(self) -> None:
        self.judge = glyphs.load_clip_judge()

    def __call__(self, strips: Sequence[Image.Image]) -> dict[str, list[Any]]:
        answers = self.judge([split_frames(strip) for strip in strips])
        for field in ("shape", "color", "background"):
            answers[field] = [most_common(frames) for frames in answers[field]]
        return answers

    def features(self, strips: Sequence[Image.Image]) -> torch.Tensor:
        """`(n, width)`, the mean over the frames."""
        clips = [split_frames(strip) for strip in strips]
        return torch.stack([self.judge.judge.features(frames).mean(0) for frames in clips])


def most_common(answers: Sequence[str | None]) -> str | None:
    """What most frames show that show anything."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


def load_clip_pipeline() -> ClipPipeline:
    """Moving glyphs, a clip as one image."""
    pipe = ClipPipeline(**glyphs.load_video_pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class ClipWorld(BenchWorld):
    """The moving world; its preserve list are captions of clips."""

    @cached_property
    def captions(self) -> tuple[str, ...]:
        return tuple(text for text, _ in captioned_clips(400, seed=0))


def clip_cases(spec: ErasureSpec, n: int, seed: int, *, fields: dict[str, str]) -> Cases:
    """Held-out captions that ask for the concepts, and captions that name another shape."""
    rng = np.random.default_rng([seed, 1])
    target = []
    for concept in spec.concepts:
        field = fields[concept.target]
        for _ in range(-(-n // len(spec.concepts))):
            clip = replace(mention_clip(sample_clip(rng), rng), **{field: concept.target})
            target.append(as_case(clip, rng, concept, field))
    other: list[Case] = []
    while len(other) < n:
        clip = mention_clip(sample_clip(rng), rng)
        if clip.shape and not CONCEPTS.keys() & {clip.shape, clip.motion}:
            other.append(as_case(clip, rng))
    return {"target": target, "other": other}


def as_case(
    clip: Clip, rng: np.random.Generator, concept: Concept | None = None, field: str = ""
) -> Case:
    """A held-out caption of the clip, and what it says; what it leaves open is left out."""
    expected = {}
    for name in ("shape", "color", "background", "motion"):
        if (word := getattr(clip, name)) is not None:
            expected[name] = word
    return Case(caption_of(clip, rng, held_out=True), expected, concept, field)


if __name__ == "__main__":
    args = parse_arguments(48, 1, __doc__)
    world = ClipWorld("moving", FIRST, load_clip_pipeline, ClipJudge)
    fields = {target: field for target, (field, _) in CONCEPTS.items()}
    suite = world.suite(partial(clip_cases, fields=fields), "clips")
    cells = {target: Cell((concept,), suite) for target, (_, concept) in CONCEPTS.items()}
    cells["all four"] = Cell(tuple(concept for _, concept in CONCEPTS.values()), suite)
    methods = {"ours: default": erase, "ours: auto": partial(erase, layers="auto")}
    for chain in CHAINS:
        methods[f"ours: {', '.join(map(str, chain))}"] = partial(erase, layers=chain)
    video = Experiment(
        "video", world, cells, methods, args.n, args.seed, __doc__, COLUMNS, predictions=True
    )
    main(video, args)
