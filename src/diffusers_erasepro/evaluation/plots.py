"""Figures of erasures: rows of images with their prompts, and edit sizes by depth."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image


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
