"""What benchmarks share: images of fixed seeds, lines that resume, and where numbers come from."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import trange

from diffusers_erasepro.glyphs.concept_prompts import Pairs

ROOT = Path(__file__).parent.parent
FIELDS = ("shape", "style", "color", "background")
CHUNK = 40
"""Images generated together."""


@torch.no_grad()
def draw(pipe: Any, pairs: Pairs, *, seed: int = 0, steps: int = 15) -> list[Image.Image]:
    """One image per caption; caption i always starts from the same noise."""
    images = []
    for first in trange(0, len(pairs), CHUNK, desc="generate", leave=False):
        texts = [text for text, _ in pairs[first : first + CHUNK]]
        seeds = [seed * 100_000 + first + i for i in range(len(texts))]
        noise = [torch.Generator().manual_seed(one) for one in seeds]
        found = pipe(texts, num_inference_steps=steps, guidance_scale=3.0, generator=noise)
        images += found.images
    return images


def accuracy(answers: dict[str, list[Any]], pairs: Pairs) -> float:
    """Share of what the captions say that a judge's answers confirm, the attribute included."""
    right = []
    for i, (_, scene) in enumerate(pairs):
        for field in FIELDS:
            if (word := getattr(scene, field)) is not None:
                right.append(answers[field][i] == word)
        right.append(answers["attribute"][i] == (scene.attribute is not None))
    return sum(right) / len(right)


def kept_lines(path: Path) -> list[Any]:
    """What an earlier start wrote with `keep_line`."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def keep_line(path: Path, value: Any) -> None:
    """Append one line of JSON, so that a benchmark that is stopped goes on from there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def built_wheel(folder: Path) -> Path:
    """This checkout as a wheel in `folder`."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def new_environment(folder: Path, *requirements: str) -> Path:
    """A new environment in `folder` with these installed; its `bin`."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", *requirements], check=True)
    return folder / "bin"


def commit() -> str:
    """The commit that runs."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip()


def provenance(seed: int) -> str:
    """One line that says where numbers come from."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_initialized() else ""
    threads = f"{torch.get_num_threads()} threads"
    machine = f"{gpu}{platform.machine()}, {threads}, torch {torch.__version__}"
    return f"{machine}, seed {seed}, commit {commit()}"
