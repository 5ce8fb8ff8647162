"""The judge of clips: the still judge on every centred frame, and the motion by tracking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .clips import MOTIONS, STILL, Clip
from .judge import Judge, to_pixels
from .render import SIZE

CONTRAST = 0.35
"""A pixel is the glyph's where a channel differs this much from its row's background, of 2."""
SMALLEST = 12
LARGEST = SIZE * SIZE // 2
"""Pixels of the smallest and the largest thing called a glyph."""
MIDDLE = 0.6
"""Half the side of the glyph's box after it is moved and scaled, as the still judge is used to."""
PLACE = 0.06
"""One unit of misfit of the centroid, in half widths of the image."""
SIZES = 0.09
"""One unit of misfit of the log size."""
HIDDEN = 9.0
"""Misfit of a frame that shows a glyph and should not, or the other way round."""
MISFIT = 4.0
"""More than this per frame is no motion known here."""


@dataclass(frozen=True)
class Track:
    """Where the glyph of a clip is, per frame."""

    shown: NDArray[np.bool_]
    box: NDArray[np.float64]
    """`(frames, 3)`: the centre x, y and half the longer side of its box."""
    place: NDArray[np.float64]
    """`(frames, 3)`: centroid x, y and the log of the square root of its area."""


def track(pixels: Tensor) -> Track:
    """Follow the glyph through frames `(n, 3, SIZE, SIZE)` in [-1, 1].

    A row's background is what stands at its borders.
    """
    edge = torch.cat([pixels[..., :2], pixels[..., -2:]], dim=-1)  # (n, 3, SIZE, 4)
    rows = edge.permute(1, 2, 0, 3).flatten(2).median(-1).values
    masks = ((pixels - rows[None, :, :, None]).abs().amax(1) > CONTRAST).numpy()
    found = [_measured(mask) for mask in masks]
    return Track(
        np.array([SMALLEST <= m.sum() <= LARGEST for m in masks]),
        *(np.array(v) for v in zip(*found, strict=True)),
    )


def _measured(
    mask: NDArray[np.bool_],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    rows, columns = np.nonzero(mask)
    x = (columns + 0.5) * 2 / SIZE - 1
    y = (rows + 0.5) * 2 / SIZE - 1
    if len(x) < SMALLEST:
        return (0.0, 0.0, MIDDLE), (0.0, 0.0, 0.0)
    left = x.min()
    right = x.max()
    top = y.min()
    bottom = y.max()
    half = max(right - left, bottom - top) / 2 + 1 / SIZE
    return ((left + right) / 2, (top + bottom) / 2, half), (x.mean(), y.mean(), np.log(len(x)) / 2)


def misfits(seen: Track) -> dict[str, float]:
    """Per motion, how far the track is from its path, apart from its place and the glyph's size."""
    return {word: _misfit(seen, path) for word, path in MOTIONS.items()}


def _misfit(seen: Track, path: NDArray[np.float64]) -> float:
    wanted = path[:, 3] > 0
    both = wanted & seen.shown
    if not both.any():
        return HIDDEN
    error = seen.place[both] - np.column_stack([path[both, :2], np.log(path[both, 2])])
    error = (error - error.mean(0)) / (PLACE, PLACE, SIZES)
    return float((error**2).sum() + HIDDEN * (wanted != seen.shown).sum()) / len(path)


def motion_of(seen: Track) -> str | None:
    """The motion that fits best, or None where none fits."""
    word, misfit = min(misfits(seen).items(), key=lambda item: item[1])
    return word if misfit <= MISFIT else None


def centred(pixels: Tensor, seen: Track) -> Tensor:
    """Frames with the glyph in the middle, as large as the still judge knows them.

    What lies outside repeats the border.
    """
    zoom = torch.tensor((seen.box[:, 2] / MIDDLE).clip(0.5, 1.2), dtype=torch.float32)
    theta = torch.zeros(len(pixels), 2, 3, dtype=torch.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = torch.tensor(seen.box[:, :2], dtype=torch.float32)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(
        pixels, grid, mode="bicubic", padding_mode="border", align_corners=False
    ).clamp(-1, 1)


class ClipJudge:
    """`judge(clips)` -> answers per frame for "shape", "color" and "background"; "motion" per clip.

    Where a frame shows no glyph its answers are None, except the background's.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def __call__(self, clips: Sequence[Sequence[Image.Image]]) -> dict[str, list]:
        answers: dict[str, list] = {"shape": [], "color": [], "background": [], "motion": []}
        for frames in clips:
            pixels = to_pixels(frames)
            seen = track(pixels)
            with torch.no_grad():
                logits = self.judge.net(centred(pixels, seen))
            frame = self.judge.answers(
                {head.name: logits[head.name].softmax(-1) for head in self.judge.heads}
            )
            for name in ("shape", "color"):
                pairs = zip(frame[name], seen.shown, strict=True)
                answers[name].append([v if shown else None for v, shown in pairs])
            answers["background"].append(frame["background"])
            answers["motion"].append(motion_of(seen))
        return answers

    def changes(self, clips: Sequence[Sequence[Image.Image]]) -> NDArray[np.float64]:
        """Mean frame-to-frame distance of the still judge's features, per clip."""
        return np.array(
            [self.judge.features(frames).diff(dim=0).norm(dim=1).mean().item() for frames in clips]
        )


def right(answers: dict[str, list], said: Sequence[Clip]) -> dict[str, list[bool]]:
    """Per question whether the clips show what the captions say.

    Once per frame in which the glyph should be there; the motion once per clip. What is not said
    counts nowhere, but for the motion: not said, the glyph rests.
    """
    found: dict[str, list[bool]] = {name: [] for name in answers}
    for i, clip in enumerate(said):
        shown = MOTIONS[clip.motion or STILL][:, 3] > 0
        for name in ("shape", "color", "background"):
            if (word := getattr(clip, name)) is not None:
                pairs = zip(answers[name][i], shown, strict=True)
                found[name] += [v == word for v, there in pairs if there]
        found["motion"].append(answers["motion"][i] == (clip.motion or STILL))
    return found
