"""What benchmarks share: prompts with a concept in them, drawing with fixed seeds, rates with intervals."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import trange

from diffusers_erasepro import ErasureAdapter, erasable, glyphs
from diffusers_erasepro.evaluation import metrics
from diffusers_erasepro.glyphs.concept_prompts import Pairs, kind_of, prompts_with, prompts_without  # noqa: F401

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tools" / "glyphs"))
FIELDS = ("shape", "style", "color", "background")


def loaded(device: str, folder: Path = glyphs.WEIGHTS) -> tuple[Any, Any]:
    """A world's pipeline and judge on `device`, in full float32 there, so that both sides of a comparison round alike."""
    torch.backends.cudnn.allow_tf32 = False
    pipe, judge = erasable(glyphs.load_pipeline(folder).to(device)), glyphs.load_judge(folder)
    judge.net.to(device)
    return pipe, judge


@torch.no_grad()
def draw(
    pipe: Any,
    pairs: Pairs,
    *,
    seed: int = 0,
    steps: int = 15,
    guidance: float = 3.0,
    desc: str = "draw",
) -> list[Image.Image]:
    """One image per caption; caption i always starts from the same noise."""
    images, size = [], 40 if pipe.device.type == "cpu" else 1000
    for i in trange(0, len(pairs), size, desc=desc, leave=False):
        texts = [text for text, _ in pairs[i : i + size]]
        noise = [torch.Generator().manual_seed(seed * 100_000 + i + j) for j in range(len(texts))]
        images += pipe(
            texts, num_inference_steps=steps, guidance_scale=guidance, generator=noise
        ).images
    return images


def accuracy(told: dict[str, list], pairs: Pairs) -> float:
    """Share of what the captions say that the pictures show: shape, style, colour, background, attribute."""
    right = [
        told[f][i] == getattr(scene, f)
        for i, (_, scene) in enumerate(pairs)
        for f in FIELDS
        if getattr(scene, f) is not None
    ]
    right += [
        told["attribute"][i] == (scene.attribute is not None) for i, (_, scene) in enumerate(pairs)
    ]
    return sum(right) / len(right)


def rate(told: dict[str, list], field: str, word: str | None) -> float:
    """Share of pictures in which the judge sees `word`, or the attribute."""
    values = told[field]
    return sum(v is True if field == "attribute" else v == word for v in values) / len(values)


def change(a: Sequence[Image.Image], b: Sequence[Image.Image]) -> np.ndarray:
    """Mean squared pixel difference of each pair of images in [0, 1]."""
    return np.array(metrics.pixel_change(a, b))


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a rate that, unlike those of `metrics.rate`, need not be a whole number of hits: frames of clips."""
    centre, spread = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n),
    )
    return max(0.0, centre - spread), min(1.0, centre + spread)


@contextmanager
def erased(pipe: Any, adapter: ErasureAdapter) -> Iterator[Any]:
    """The pipeline with one adapter on, for the time of the block."""
    pipe.load_erasure_adapter(adapter, adapter_name="bench")
    try:
        yield pipe
    finally:
        pipe.unload_erasure_adapters()


def kept_lines(path: Path) -> list[Any]:
    """What an earlier start wrote with `keep_line`; a file of its own makes its folder."""
    path.parent.mkdir(exist_ok=True)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep_line(path: Path, value: Any) -> None:
    """Append one line of JSON, so that a bench that is stopped goes on from there."""
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def built_wheel(folder: Path) -> Path:
    """This checkout as a wheel in `folder`."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(ROOT)],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def new_environment(folder: Path, *requirements: str) -> Path:
    """A new environment in `folder` with these installed; its `bin`."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", *requirements], check=True)
    return folder / "bin"


def commit() -> str:
    """The commit that runs."""
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()


def provenance(seed: int) -> str:
    """One line that says where numbers come from."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_initialized() else ""
    return f"{gpu}{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, seed {seed}, commit {commit()}"
