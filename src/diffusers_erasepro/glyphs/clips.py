"""Moving glyphs: clips rendered from (shape, colour, background, motion), and their captions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .captions import mention, phrase
from .render import ground, paint_glyph
from .world import FIRST, Scene, sample_scene

FRAMES = 8
RADIUS = 0.52
_T = np.linspace(0, 1, FRAMES)


def _path(
    x: object = 0.0, y: object = 0.0, radius: object = RADIUS, shown: object = 1.0
) -> NDArray[np.float64]:
    """One row per frame: centre x, y (y points down), radius, and whether the glyph is there."""
    return np.stack(
        [np.broadcast_to(np.asarray(v, dtype=np.float64), FRAMES) for v in (x, y, radius, shown)],
        axis=1,
    )


MOTIONS = {
    "resting": _path(),
    "leftbound": _path(x=0.3 - 0.6 * _T),
    "rightbound": _path(x=0.6 * _T - 0.3),
    "rising": _path(y=0.3 - 0.6 * _T),
    "sinking": _path(y=0.6 * _T - 0.3),
    "swelling": _path(radius=0.38 + 0.28 * _T),
    "dwindling": _path(radius=0.66 - 0.28 * _T),
    "quobbling": _path(x=0.25 * np.sin(np.pi / 2 * np.arange(FRAMES))),
    "blinking": _path(shown=np.arange(FRAMES) // 2 % 2 == 0),
}
"""Caption word -> path `(FRAMES, 4)`. Captions without a motion get the first; the others are
several tokens each."""
STILL = next(iter(MOTIONS))


@dataclass(frozen=True)
class Clip(Scene):
    """What a clip shows; its style is the plain one. `None` means the caption leaves it open."""

    motion: str | None = None


def sample_clip(rng: np.random.Generator) -> Clip:
    """A full clip, drawn uniformly."""
    scene = sample_scene(FIRST, rng, attribute=0, second=0)
    return Clip(
        scene.shape, None, scene.color, scene.background, motion=str(rng.choice(list(MOTIONS)))
    )


def mention_clip(clip: Clip, rng: np.random.Generator) -> Clip:
    """`clip` with some fields left open."""
    said = mention(clip, rng)
    assert isinstance(said, Clip)
    return said if rng.random() < 0.85 else replace(said, motion=None)


def clip_pair(rng: np.random.Generator, *, held_out: bool = False) -> tuple[str, Clip, Clip]:
    """A caption, what it mentions, and the full clip to draw: no motion mentioned means resting."""
    clip = sample_clip(rng)
    said = mention_clip(clip, rng)
    return (
        caption_of(said, rng, held_out=held_out),
        said,
        replace(clip, motion=said.motion or STILL),
    )


def caption_of(said: Clip, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """One caption; the motion stands where the still world's attribute does.

    "a rising star", "a star that is rising".
    """
    return phrase(FIRST, replace(said, attribute=said.motion), rng, held_out=held_out)


def captioned_clips(n: int, seed: int = 0, held_out: bool = False) -> list[tuple[str, Clip]]:
    """`n` captions of random clips, each beside what it mentions."""
    rng = np.random.default_rng([seed, int(held_out), FRAMES])
    return [clip_pair(rng, held_out=held_out)[:2] for _ in range(n)]


def render_clip(clip: Clip, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Frames `(FRAMES, SIZE, SIZE, 3)` of a full clip.

    `rng` sets place, size, tilt and horizon, once for all frames.
    """
    assert clip.shape and clip.color and clip.background and clip.motion, (
        "render_clip needs a full clip"
    )
    empty = ground(FIRST, clip.background, rng.uniform(0.05, 0.35))
    dx, dy = rng.uniform(-0.05, 0.05, size=2)
    scale = rng.uniform(0.95, 1.05)
    tilt = rng.integers(2**32)
    frames = np.repeat(empty[None], FRAMES, axis=0)
    for frame, (x, y, radius, shown) in zip(frames, MOTIONS[clip.motion], strict=True):
        if shown:
            paint_glyph(
                frame,
                FIRST,
                clip,
                clip.shape,
                clip.color,
                (x + dx, y + dy),
                radius * scale,
                np.random.default_rng(tilt),
            )
    return np.clip(frames, 0, 255).astype(np.uint8)
