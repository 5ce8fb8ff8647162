"""The numbers of benchmarks/results/second-judge.md.

How often Text-To-Concept sees in drawn pictures what the judge sees.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
from common import draw, provenance
from diffusers_erasepro import glyphs
from diffusers_erasepro.evaluation.detectors import load_second_judge
from diffusers_erasepro.evaluation.metrics import rate
from diffusers_erasepro.glyphs.concept_prompts import prompts_without
from diffusers_erasepro.glyphs.world import FIRST, Scene

FIELDS = (*common.FIELDS, "attribute")
INTRODUCTION = """# A second opinion, measured

`python benchmarks/second_judge.py` wrote this page: {where}.

`load_second_judge()` is [Text-To-Concept](../../docs/guides/research.md#a-second-opinion): a
least-squares map, fitted on 800 renders without a label, from the judge's trunk to the picture side
of a small contrastive image-text encoder (`python tools/glyphs/train_clip.py` trains it); a picture
shows the word whose text vector is nearest. Below, {n} pictures that the shipped pipeline drew of
held-out phrasings ({steps} steps, guidance 3). Pictures on which the judge abstains are left out of
the first column; the others count the captions that name the field.

| field | both say the same (95 %) | judge gives what was asked | second judge gives it |
|---|---|---|---|"""


def row(field: str, told: list, seen: list, asked: list) -> str:
    both = [a == b for a, b in zip(told, seen, strict=True) if a is not None]
    right = [
        rate([a == b for a, b in zip(said, asked, strict=True) if b is not None])
        for said in (told, seen)
    ]
    return f"| {field} | {rate(both)} | {right[0]} | {right[1]} |"


def asked_of(scene: Scene) -> dict[str, object]:
    """What a caption asks for, in the judges' words; None where it says nothing."""
    attribute = None if scene.attribute is None else scene.attribute in FIRST.attribute_words
    return {field: getattr(scene, field) for field in FIELDS} | {"attribute": attribute}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=400)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--page", type=Path, default=Path("benchmarks/results/second-judge.md"))
    args = parser.parse_args()
    pairs = prompts_without((), args.n, seed=args.seed, held_out=True)
    images = draw(glyphs.load_pipeline(), pairs, seed=args.seed, steps=args.steps)
    told = glyphs.load_judge()(images)
    seen = load_second_judge()(images)
    text = [INTRODUCTION.format(where=provenance(args.seed), n=args.n, steps=args.steps)]
    asked = [asked_of(scene) for _, scene in pairs]
    text += [row(field, told[field], seen[field], [a[field] for a in asked]) for field in FIELDS]
    args.page.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
