"""Figures of erasures: rows of images with their prompts, and edit sizes by depth."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

PICTURE_SIDE = 176
"""Pixels of a picture of `save_before_after`."""
PAIRS_ACROSS = 3
"""Prompts beside each other there."""
PICTURE_MARGIN = 14
LETTERS = {"title": 30, "caption": 22}
"""Of its letters: they are read at half the size too."""
BeforeAfter = tuple[str, Image.Image, Image.Image]
"""A prompt, its picture before, and after."""


def save_grid(
    path: str | Path,
    prompts: Sequence[str],
    rows: Mapping[str, Sequence[Image.Image]],
    *,
    title: str = "",
) -> Path:
    """One column per prompt, one row per state of the pipeline; prompts stand above."""
    figure, axes = plt.subplots(
        len(rows), len(prompts), figsize=(1.55 * len(prompts), 1.6 * len(rows) + 0.7), squeeze=False
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.resize((192, 192), Image.Resampling.NEAREST))
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
    for axis, prompt in zip(axes[0], prompts, strict=True):
        axis.set_title("\n".join(textwrap.wrap(prompt, 22)), fontsize=7)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def save_before_after(path: str | Path, sections: Mapping[str, Sequence[BeforeAfter]]) -> Path:
    """Each prompt with its picture before and after side by side, under a heading per section."""
    fonts = {
        "title": ImageFont.truetype(font_manager.findfont("DejaVu Sans:bold"), LETTERS["title"]),
        "caption": ImageFont.truetype(font_manager.findfont("DejaVu Sans"), LETTERS["caption"]),
    }
    cell = 2 * PICTURE_SIDE + 4
    row = PICTURE_SIDE + 3 * LETTERS["caption"] + PICTURE_MARGIN
    head = LETTERS["title"] + LETTERS["caption"] + 2 * PICTURE_MARGIN
    height = PICTURE_MARGIN
    for pairs in sections.values():
        height += head + -(-len(pairs) // PAIRS_ACROSS) * row
    sheet = Image.new("RGB", (PAIRS_ACROSS * (cell + 2 * PICTURE_MARGIN), height), "white")
    pen = ImageDraw.Draw(sheet)
    top = PICTURE_MARGIN
    for title, pairs in sections.items():
        pen.text((PICTURE_MARGIN, top), title, "black", font=fonts["title"])
        first = top + head
        for at, pair in enumerate(pairs):
            left = PICTURE_MARGIN + at % PAIRS_ACROSS * (cell + 2 * PICTURE_MARGIN)
            if at < PAIRS_ACROSS:
                for side, word in enumerate(("before", "after")):
                    place = (left + side * (PICTURE_SIDE + 4), first - LETTERS["caption"] - 6)
                    pen.text(place, word, "#57606a", font=fonts["caption"])
            _paste_pair(sheet, (left, first + at // PAIRS_ACROSS * row), pair, fonts["caption"])
        top = first + -(-len(pairs) // PAIRS_ACROSS) * row
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _paste_pair(sheet: Image.Image, place: tuple[int, int], pair: BeforeAfter, font: Any) -> None:
    """Two pictures and their prompt below, on two lines at most."""
    text, *images = pair
    left, top = place
    for side, image in enumerate(images):
        enlarged = image.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
        x = left + side * (PICTURE_SIDE + 4)
        sheet.paste(enlarged, (x, top))
        # a white picture ends somewhere too
        box = (x, top, x + PICTURE_SIDE - 1, top + PICTURE_SIDE - 1)
        ImageDraw.Draw(sheet).rectangle(box, outline="#d0d7de")
    lines = textwrap.wrap(text, 2 * PICTURE_SIDE // (LETTERS["caption"] * 6 // 10))
    ImageDraw.Draw(sheet).multiline_text(
        (left, top + PICTURE_SIDE + 4), "\n".join(lines[:2]), "black", font=font, spacing=2
    )


def save_depth(
    path: str | Path,
    sizes: Mapping[str, Sequence[float]],
    *,
    title: str,
    label: str = "block, shallow to deep",
    log: bool = False,
) -> Path:
    """Relative edit size |D| / |W| by block, or by what `label` says; one line per name."""
    figure, axis = plt.subplots(figsize=(5, 3.2))
    for name, values in sizes.items():
        axis.plot(range(len(values)), values, marker="o", label=name)
    axis.set(xlabel=label, ylabel="||D|| / ||W||", title=title, ylim=(0, None))
    if log:
        axis.set(yscale="log", ylim=(1e-4, 2))
    axis.legend(fontsize=8)
    return _save(figure, path)


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path
