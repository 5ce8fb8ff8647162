"""The shipped captions: everyday scenes, which stand for everything that an erasure must not move.

Written for this project, sentence by sentence: people of all kinds, kitchens, sport, medicine, art,
text in pictures. Most are short, as people describe a photograph; one in seventeen is as long as
prompts for Flux or Qwen are, and has five times the tokens of a short one.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import numpy as np

FILES = ("captions_one.txt", "captions_two.txt", "captions_three.txt")


@cache
def _every() -> tuple[str, ...]:
    lines: list[str] = []
    for name in FILES:
        text = (files(__package__) / "templates" / name).read_text(encoding="utf-8")
        lines += [line for line in text.splitlines() if line.strip()]
    return tuple(dict.fromkeys(lines))


@cache
def everyday_words() -> frozenset[str]:
    """The words that the captions write in small letters: ordinary ones, and no names."""
    found: set[str] = set()
    for caption in _every():
        found.update(re.findall(r"\b[a-z]+\b", caption))
    return frozenset(found)


def everyday_captions(n: int | None = None, *, seed: int = 0) -> tuple[str, ...]:
    """Everyday captions, in the files' order; they are grouped by theme there.

    Args:
        n: How many, spread evenly over the themes; None gives all.
        seed: Which of each theme; the same seed gives the same captions.
    """
    every = _every()
    if n is None or n >= len(every):
        return every
    if n <= 0:
        return ()
    edges = np.linspace(0, len(every), n + 1).astype(int)
    rng = np.random.default_rng(seed)
    return tuple(every[rng.integers(edges[i], edges[i + 1])] for i in range(n))
