"""Does a pipeline of the pictures world draw what its caption says? By the judge.

    python tools/pictures/evaluate.py unet [--captions 1000] [--seed 7] [--out FOLDER]

Thing, hand and background on captions in held-out phrasings; two-thing captions, each half asked
alone; every synonym by word. Writes FOLDER/KIND.json, and FOLDER/KIND.png to look at.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from diffusers_erasepro import pictures
from diffusers_erasepro.pictures import Caption
from diffusers_erasepro.pictures.judge import SIZE, half

BATCH = 32
COLUMNS = 16


@dataclass(frozen=True)
class Drawer:
    """A pipeline with its settings; a picture's noise depends on its place in the list alone."""

    pipe: Any
    steps: int
    guidance: float
    seed: int

    def __call__(self, texts: Sequence[str], what: str) -> list[Image.Image]:
        images = []
        for start in tqdm(range(0, len(texts), BATCH), what):
            part = list(texts[start : start + BATCH])
            seeds = [self.seed * 100_003 + start + at for at in range(len(part))]
            drawn = self.pipe(
                part,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                height=SIZE,
                width=SIZE,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            )
            images += drawn.images
        return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("unet", "dit"))
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--each", type=int, default=2, help="pictures of every synonym")
    parser.add_argument("--trained", action="store_true", help="phrasings of training instead")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/pictures/evaluation"))
    args = parser.parse_args()
    draw = Drawer(pictures.load_pipeline(args.kind), args.steps, args.guidance, args.seed)
    results: dict[str, Any] = {"settings": {**vars(args), "out": str(args.out)}}
    shown = []
    if args.captions:
        asked = pictures.captions(args.captions, args.seed, held_out=not args.trained)
        images = draw([caption.text for caption in asked], "captions")
        results["captions"] = of_captions(asked, images)
        shown += list(zip([caption.text for caption in asked], images, strict=True))
    if args.pairs:
        asked = pictures.captions(args.pairs, args.seed, held_out=not args.trained, two=1.0)
        images = draw([caption.text for caption in asked], "pairs")
        results["pairs"] = of_pairs(asked, images)
    if args.each:
        asked_words = synonyms_of_all() * args.each
        images = draw([f"a picture of a {word}" for word, _ in asked_words], "synonyms")
        results["synonyms"] = of_synonyms(asked_words, images)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.kind}.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if shown:
        grid([image for _, image in shown[: 8 * COLUMNS]]).save(args.out / f"{args.kind}.png")
        texts = "\n".join(text for text, _ in shown[: 8 * COLUMNS])
        (args.out / f"{args.kind}.txt").write_text(texts + "\n", "utf-8")
    print(json.dumps({k: v for k, v in results.items() if k != "synonyms"}, indent=1))
    if args.each:
        print("synonyms", results["synonyms"]["share"], "n =", results["synonyms"]["n"])


def synonyms_of_all() -> list[tuple[str, str]]:
    """Every synonym with its thing."""
    pairs = []
    for thing in pictures.THINGS:
        pairs += [(word, thing) for word in pictures.synonyms(thing)]
    return pairs


def of_captions(asked: Sequence[Caption], images: Sequence[Image.Image]) -> dict[str, Any]:
    """Share of pictures that show what the caption names, by the judge's likeliest answer.

    "surely right" counts its abstentions as wrong.
    """
    judge = pictures.load_judge()
    likeliest = judge.likeliest(images)
    said = judge(images)
    truth = {
        "thing": [caption.things[0] for caption in asked],
        "hand": [caption.hand for caption in asked],
        "background": [caption.background for caption in asked],
    }
    results = {}
    for name, named in truth.items():
        asked_for = [at for at, answer in enumerate(named) if answer is not None]
        results[name] = {
            "right": share([likeliest[name][at] == named[at] for at in asked_for]),
            "surely right": share([said[name][at] == named[at] for at in asked_for]),
            "abstained": share([said[name][at] is None for at in asked_for]),
            "n": len(asked_for),
        }
    # the second detector chooses among the same names, by words alone
    best = pictures.load_words().best(images, pictures.THINGS)
    agreed = [a == b for a, b in zip(best, truth["thing"], strict=True)]
    results["thing by words"] = {"right": share(agreed), "n": len(agreed)}
    return results


def of_pairs(asked: Sequence[Caption], images: Sequence[Image.Image]) -> dict[str, Any]:
    """Each half of a two-thing picture, cut out and enlarged, asked for its own thing."""
    judge = pictures.load_judge()
    right = []
    for side in (0, 1):
        said = judge.likeliest([half(image, side) for image in images])["thing"]
        named = [caption.things[side] for caption in asked]
        right.append([a == b for a, b in zip(said, named, strict=True)])
    both = [left and other for left, other in zip(*right, strict=True)]
    return {"each": share(right[0] + right[1]), "both": share(both), "n": len(asked)}


def of_synonyms(asked: Sequence[tuple[str, str]], images: Sequence[Image.Image]) -> dict[str, Any]:
    """Share of pictures of a synonym that show its thing, in all and by word."""
    said = pictures.load_judge().likeliest(images)["thing"]
    words: dict[str, dict[str, Any]] = {}
    for (word, thing), answer in zip(asked, said, strict=True):
        entry = words.setdefault(word, {"thing": thing, "said": []})
        entry["said"].append(answer)
    right = [answer == thing for (_, thing), answer in zip(asked, said, strict=True)]
    return {"share": share(right), "n": len(right), "words": words}


def share(right: Sequence[bool]) -> float | None:
    """The share, or None of nothing."""
    return round(sum(right) / len(right), 4) if right else None


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Rows of sixteen, twice enlarged."""
    rows = -(-len(images) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * SIZE, rows * SIZE), "white")
    for at, image in enumerate(images):
        canvas.paste(image, (at % COLUMNS * SIZE, at // COLUMNS * SIZE))
    return canvas.resize((2 * canvas.width, 2 * canvas.height), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
