"""The numbers of benchmarks/results/glyph-world.md.

How well the shipped world draws, how well its judge sees, how long both take.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import trange

from common import FIELDS, draw, provenance
from diffusers_erasepro import glyphs
from diffusers_erasepro.glyphs.captions import captioned_scenes
from diffusers_erasepro.glyphs.judge import Judge, to_pixels
from diffusers_erasepro.glyphs.render import image
from diffusers_erasepro.glyphs.world import FIRST, Scene, sample_scene

HEADS = (*FIELDS, "attribute")


def truth(scene: Scene, head: str) -> object:
    return scene.attribute is not None if head == "attribute" else getattr(scene, head)


def accuracies(told: dict[str, list], scenes: list[Scene]) -> dict[str, tuple[float, int]]:
    """Head -> (share right, how many captions say something about it)."""
    found = {}
    for head in HEADS:
        right = [
            told[head][i] == truth(s, head)
            for i, s in enumerate(scenes)
            if truth(s, head) is not None
        ]
        found[head] = (sum(right) / len(right), len(right))
    return found


def line(name: str, values: dict[str, tuple[float, int]]) -> str:
    return (
        f"| {name} | " + " | ".join(f"{share:.3f} (n={n})" for share, n in values.values()) + " |"
    )


@torch.no_grad()
def reconstructions(pipe: Any, images: list) -> list:
    pixels = torch.cat([pipe.vae(p).sample for p in to_pixels(images).split(50)])
    return pipe.image_processor.postprocess(pixels, output_type="pil")


def drawn(
    pipe: Any, judge: Judge, n: int, *, held_out: bool, seed: int
) -> dict[str, tuple[float, int]]:
    pairs = captioned_scenes(n, seed=seed, held_out=held_out)
    return accuracies(judge(draw(pipe, pairs, seed=seed)), [s for _, s in pairs])


def two_objects(pipe: Any, judge: Judge, n: int, seed: int) -> tuple[float, float]:
    """Share of two-object captions whose first shape, and whose both shapes, are drawn in any
    order."""
    pairs = captioned_scenes(n, seed=seed, held_out=True, second=1.0)
    pairs = [(t, s) for t, s in pairs if s.shape and s.second]
    told = judge(draw(pipe, pairs, seed=seed))
    seen = [{a, b} for a, b in zip(told["shape"], told["second"], strict=True)]
    wanted = [{s.shape, s.second[1]} for _, s in pairs if s.second]
    first = sum(s.shape in x for (_, s), x in zip(pairs, seen, strict=True)) / len(pairs)
    return first, sum(w <= x for w, x in zip(wanted, seen, strict=True)) / len(pairs)


def training(log: Path) -> list[str]:
    """The last log line of every part: steps, loss, minutes."""
    last = {
        row["part"]: row
        for row in map(json.loads, log.read_text(encoding="utf-8").splitlines())
        if "step" in row
    }
    lines = ["| part | steps | last loss | minutes |", "|---|---|---|---|"]
    return lines + [
        f"| {p} | {r['steps']} | {r['loss']:.4f} | {r['seconds'] / 60:.0f} |"
        for p, r in last.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--log", type=Path, default=Path("runs/first/log.jsonl"))
    parser.add_argument("--page", type=Path, default=Path("benchmarks/results/glyph-world.md"))
    args = parser.parse_args()
    glyphs.load_pipeline()  # imports are not part of loading
    began = time.perf_counter()
    pipe = glyphs.load_pipeline()
    load = time.perf_counter() - began
    judge = glyphs.load_judge()
    began = time.perf_counter()
    draw(pipe, captioned_scenes(32, seed=1))
    pictures = time.perf_counter() - began

    rng = np.random.default_rng(args.seed)
    rows = [f"| | {' | '.join(HEADS)} |", f"|---{'|---' * len(HEADS)}|"]
    for name, second in (("judge, one object", 0.0), ("judge, two objects", 1.0)):
        scenes = [
            sample_scene(FIRST, rng, second=second) for _ in trange(600, desc=name, leave=False)
        ]
        images = [image(FIRST, s, rng) for s in scenes]
        rows.append(line(f"{name}, renders", accuracies(judge(images), scenes)))
        rows.append(
            line(
                f"{name}, VAE reconstructions",
                accuracies(judge(reconstructions(pipe, images)), scenes),
            )
        )
    rows.append(
        line(
            "drawn from training phrasings",
            drawn(pipe, judge, args.n, held_out=False, seed=args.seed),
        )
    )
    rows.append(
        line(
            "**drawn from held-out phrasings**",
            drawn(pipe, judge, args.n, held_out=True, seed=args.seed),
        )
    )
    first, both = two_objects(pipe, judge, args.n // 2, args.seed)
    size = sum(p.stat().st_size for p in glyphs.WEIGHTS.rglob("*") if p.is_file()) / 1e6

    args.page.write_text(
        "\n".join(
            [
                "# The glyph world, measured",
                "",
                (
                    "`python benchmarks/glyph_world.py` wrote this page: "
                    f"{provenance(args.seed)}; {args.n} captions per drawn row,"
                ),
                "15 steps, guidance 3, float32. Only what a caption says counts.",
                "",
                *rows,
                "",
                f"Two objects, held-out phrasings: the first shape is there in {first:.3f}, "
                f"both in {both:.3f} "
                f"of {args.n // 2} pictures.",
                "",
                (
                    f"Weights {size:.1f} MB; `load_pipeline()` {load:.2f} s; 32 images in 15 "
                    f"steps {pictures:.1f} s."
                ),
                "",
                "## Training",
                "",
                *(training(args.log) if args.log.exists() else ["No log at hand."]),
                "",
            ]
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
