"""docs/chains.md: what each chain of layers leaves and moves, in pictures of phrasings that no list holds and no page judges.

These frames are for choosing by (`unseen.FRAMES`): no template, no training caption, no held-out phrasing. Single flips make a
mean square, so it takes thousands of pictures: minutes on a GPU, days on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from common import (
    Pairs,
    draw,
    erased,
    keep_line,
    kept_lines,
    loaded,
    prompts_with,
    provenance,
    rate,
)
from diffusers_erasepro import Concept, ErasureSpec, erase, glyphs
from diffusers_erasepro.baselines import uce
from diffusers_erasepro.erasure.auto_layers import Look
from diffusers_erasepro.evaluation.metrics import pixel_change
from diffusers_erasepro.glyphs.world import FIRST, Scene
from first_light import FLIP, concepts_of
from unseen import asked

NOBODY = Concept("nothing of that kind", anchor="nothing")
MORE = {"crescent": "circle", "arrow": "square", "drop": "triangle", "bolt": "diamond"}
"""Shapes beyond those of docs/first-light.md, and their anchors."""
CHAINS: dict[str, dict[str, Any]] = {
    "0, -1": {"layers": (0, -1)},
    "1, -1": {"layers": (1, -1)},
    "2, -1": {"layers": (2, -1)},
    "-1": {"layers": (-1,)},
    "neurons, -1": {"layers": ("neurons", -1)},
    "neurons, eos_neurons, -1": {"layers": ("neurons", "eos_neurons", -1)},
    "eos_neurons, -1": {"layers": ("eos_neurons", -1)},
}


HEAD = """# Chains, in thousands of pictures

`benchmarks/chains.py` wrote this page: {where}.
Others: phrasings that no template, training caption or held-out prompt has (`unseen.FRAMES`); targets in training phrasings.
Nothing here is held out: `templates.Recipe` and `denoiser.CHAINS` were chosen by it. Single flips make the mse: the counts
say how sure it is. r and d are what `layers="auto"` sees of a chain before any picture.

| erased | chain | target still drawn | anchor | mse of others (1e-5) | flipped | r | d |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Row:
    """One concept under one chain."""

    concept: str
    chain: str
    n: int
    """Pictures of others."""
    mse: float
    flips: int
    target: float
    """Share of pictures that still show it, asked for in training phrasings."""
    anchor: float | None
    r: float
    d: float
    """What `layers="auto"` sees: denoiser residual and drift."""


def concepts() -> dict[str, tuple[str, Concept]]:
    """Field and concept by target."""
    more = {t: ("shape", Concept(t, a, templates="instance")) for t, a in MORE.items()}
    return {c.target: (field, c) for field, c in concepts_of(FIRST)} | more


def page(rows: list[Row], where: str) -> list[str]:
    lines = [HEAD.format(where=where)]
    for row in rows:
        lines.append(
            f"| {row.concept} | {row.chain} | {row.target:.3f} | {'-' if row.anchor is None else f'{row.anchor:.3f}'} | "
            f"{1e5 * row.mse:.0f} | {row.flips} of {row.n} | {row.r:.3f} | {row.d:.4f} |"
        )
    return [*lines, ""]


class Bench:
    """The unedited pictures of others, and what a chain makes of them."""

    def __init__(self, n: int, targets: int, seed: int, device: str) -> None:
        self.targets, self.seed, self.preserve = targets, seed, tuple(glyphs.captions(400, seed=0))
        self.pipe, self.judge = loaded(device)
        self.others: Pairs = [
            (text, Scene(None, None, None, None)) for text in asked(NOBODY, n, seed)
        ]
        self.base = draw(self.pipe, self.others, seed=seed, desc="unedited")

    def row(self, name: str, chain: str) -> Row:
        field, concept = concepts()[name]
        spec = ErasureSpec((concept,), preserve=self.preserve)
        adapter = (
            uce(self.pipe, spec) if chain == "UCE" else erase(self.pipe, spec, **CHAINS[chain])
        )
        with torch.no_grad():
            r, d = Look.at(self.pipe, spec).compare(adapter)
        targets = prompts_with(concept, self.targets, seed=self.seed, held_out=False)
        with erased(self.pipe, adapter):
            told = self.judge(draw(self.pipe, targets, seed=self.seed, desc=f"{chain}: {name}"))
            moved = np.array(
                pixel_change(draw(self.pipe, self.others, seed=self.seed, desc="others"), self.base)
            )
        moved = moved[[not any(word in text for word in concept.words) for text, _ in self.others]]
        anchor = None if field == "attribute" else rate(told, field, concept.anchor)
        flips, target = int((moved > FLIP).sum()), rate(told, field, concept.target)
        return Row(name, chain, len(moved), float(moved.mean()), flips, target, anchor, r, d)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--n",
        type=int,
        default=6000,
        help="pictures of others; fewer are left where they name the concept",
    )
    parser.add_argument("--targets", type=int, default=400)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--concepts", nargs="*", default=list(concepts()))
    parser.add_argument(
        "--lines", type=Path, default=Path("runs/chains.jsonl"), help="finished rows"
    )
    parser.add_argument(
        "--drawn",
        default="",
        help="how the rows in --lines were drawn; writes the page from them alone",
    )
    parser.add_argument("--page", type=Path, default=Path("docs/chains.md"))
    args = parser.parse_args()
    known = {(r.concept, r.chain): r for r in (Row(**line) for line in kept_lines(args.lines))}
    wanted = [(name, chain) for name in args.concepts for chain in ("UCE", *CHAINS)]
    if not args.drawn:
        bench = Bench(args.n, args.targets, args.seed, args.device)
        for one in tqdm([one for one in wanted if one not in known], desc="chains"):
            known[one] = bench.row(*one)
            keep_line(args.lines, vars(known[one]))
    args.page.write_text(
        "\n".join(
            page(
                [known[one] for one in wanted if one in known], args.drawn or provenance(args.seed)
            )
        )
    )


if __name__ == "__main__":
    main()
