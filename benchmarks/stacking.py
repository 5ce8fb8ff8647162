"""The numbers of results/stacking-WORLD.md: adapters made apart, put together on a glyph world."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from common import provenance
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.erasure.residuals import aligned_states, relative
from diffusers_erasepro.families.encoders import live_name
from diffusers_erasepro.glyphs.world import WORLDS, World
from diffusers_erasepro.linalg.low_rank import LowRank, stack
from diffusers_erasepro.loaders.stacking import combine, combine_stored
from diffusers_erasepro.prompts.alignment import kept_rows, rows_of
from diffusers_erasepro.prompts.pairs import pairs_of

NOUNS = (
    "house",
    "tree",
    "dog",
    "cat",
    "woman",
    "man",
    "child",
    "car",
    "street",
    "mountain",
    "river",
    "flower",
    "bird",
    "boat",
    "table",
    "chair",
    "book",
    "city",
    "beach",
    "forest",
    "horse",
    "cup",
    "plate",
    "bridge",
    "garden",
    "window",
    "clock",
    "lamp",
    "bag",
    "train",
    "apple",
    "bottle",
    "guitar",
)


def concepts(world: World) -> tuple[Concept, ...]:
    """Shapes, styles, the attribute, then nouns.

    The world does not draw nouns: they are erased as well as any other word, in its text
    features. Anchors are no targets.
    """
    shapes, (plain, *styles) = [*world.shapes], world.styles
    anchors, (attribute, *synonyms) = shapes[:2], world.attribute_words
    return (
        *(Concept(s, anchors[i % 2]) for i, s in enumerate(shapes[2:])),
        *(Concept(s, plain, templates="style") for s in styles),
        Concept(
            attribute,
            world.attribute_opposites[0],
            templates=glyphs.templates("attribute"),
            synonyms=tuple(synonyms),
        ),
        *(Concept(n, anchors[i % 2]) for i, n in enumerate(NOUNS)),
    )


APART = 10
"""Up to so many are loaded one by one, each load a joint solve; more go at once."""


def worst(pipe: Any, adapters: Sequence[ErasureAdapter], edits: Mapping[str, LowRank]) -> float:
    """Largest listed residual of all adapters when `edits` are on."""
    encoder = pipe.text_encoder
    pairs = [pair for a in adapters for pair in pairs_of(a.spec.concepts, "exact")]
    rows = rows_of(pairs, pipe.tokenizer, ALIGNMENTS[adapters[0].options.alignment])
    return float(relative(*aligned_states(encoder, rows, named(encoder, edits))).max())


def drift(pipe: Any, captions: Sequence[str], edits: Mapping[str, LowRank]) -> float:
    """Mean relative change of the captions' states when `edits` are on."""
    encoder = pipe.text_encoder
    return float(
        relative(
            *aligned_states(encoder, kept_rows(captions, pipe.tokenizer), named(encoder, edits))
        ).mean()
    )


def named(encoder: torch.nn.Module, edits: Mapping[str, LowRank]) -> dict[str, LowRank]:
    return {str(live_name(encoder, k.partition(".")[2])): f for k, f in edits.items()}


def bits(pipe: Any) -> list[torch.Tensor]:
    return [t.clone() for t in pipe.text_encoder.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def timed(call: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def live(pipe: Any, adapters: Sequence[ErasureAdapter], seed: int) -> dict[str, Any]:
    """Load in a shuffled order, verify, toggle, delete one, load the other way round."""
    base = bits(pipe)
    order = list(range(len(adapters)))
    random.Random(seed).shuffle(order)

    def load(indices: Sequence[int]) -> None:
        named = {f"a{i}": adapters[i] for i in indices}
        if len(named) > APART:
            pipe.load_erasure_adapters(named)
            return
        for name, adapter in tqdm(named.items(), desc=f"load {len(indices)}", leave=False):
            pipe.load_erasure_adapter(adapter, adapter_name=name)

    seconds, _ = timed(lambda: load(order))
    residual = pipe.verify_erasure().residual
    stacked = bits(pipe)
    pipe.disable_erasure()
    off = same(bits(pipe), base)
    toggle, _ = timed(pipe.enable_erasure)
    again = same(bits(pipe), stacked)
    pipe.delete_erasure_adapters(f"a{order[0]}")
    after = pipe.verify_erasure().residual
    pipe.unload_erasure_adapters()
    load(order[::-1])
    reverse = same(bits(pipe), stacked)
    pipe.unload_erasure_adapters()
    return {
        "loading": seconds,
        "residual": residual,
        "after": after,
        "toggle": toggle,
        "off": off,
        "again": again,
        "reverse": reverse,
    }


def summed(adapters: Sequence[ErasureAdapter]) -> dict[str, LowRank]:
    """What a tool that knows files alone makes of them."""
    names = dict.fromkeys(name for a in adapters for name in a.edits)
    return {
        n: stack([a.edits[n].to(torch.float64) for a in adapters if n in a.edits]) for n in names
    }


def row(
    pipe: Any, adapters: Sequence[ErasureAdapter], in_blocks: Sequence[ErasureAdapter], seed: int
) -> str:
    joint = combine(pipe, adapters)
    assert joint is not None
    captions = joint.spec.preserve_captions()
    close_seconds, close = timed(lambda: combine_stored(in_blocks))
    edits = {
        "default": summed(adapters),
        "sum": summed(in_blocks),
        "kernel": close,
        "joint": joint.edits,
    }
    with torch.no_grad():
        residual = {k: worst(pipe, adapters, e) for k, e in edits.items()}
        moved = {k: drift(pipe, captions[:128], e) for k, e in edits.items()}
    seen = live(pipe, adapters, seed)
    exact = all(seen[k] for k in ("off", "again", "reverse"))
    tqdm.write(f"{len(adapters)} {residual} {moved} {seen}")
    return (
        f"| {len(adapters)} | {residual['default']:.2f} / {moved['default']:.3f} | "
        f"{residual['sum']:.2f} / {moved['sum']:.3f} | "
        f"{residual['kernel']:.3f} / {moved['kernel']:.3f} | "
        f"{seen['residual']:.1e} / {moved['joint']:.3f} | {seen['after']:.1e} | "
        f"{'yes' if exact else '**no**'} | "
        f"{joint.report.seconds:.1f} | {1000 * seen['toggle']:.0f} | {1000 * close_seconds:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 5, 10, 50])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--world", choices=sorted(WORLDS), default="first")
    parser.add_argument(
        "--folder", type=Path, default=glyphs.WEIGHTS, help="where that world's weights are"
    )
    parser.add_argument("--page", type=Path, help="default: benchmarks/results")
    args = parser.parse_args()
    world = WORLDS[args.world]
    pipe = erasable(glyphs.load_pipeline(args.folder))
    preserve = tuple(glyphs.captions(400, seed=0, world=world))
    specs = [ErasureSpec((c,), preserve=preserve) for c in concepts(world)[: max(args.counts)]]
    made = [erase(pipe, spec, measure=False) for spec in tqdm(specs, desc="erase")]
    in_blocks = [
        erase(pipe, spec, measure=False, layers=(0, -1))
        for spec in tqdm(specs, desc="erase in blocks")
    ]
    rows = [row(pipe, made[:n], in_blocks[:n], args.seed) for n in args.counts]
    page = [
        f"# Stacking adapters made apart, on the {world.name} world",
        "",
        (
            f"`python benchmarks/stacking.py --world {world.name}` wrote this page: "
            f"{provenance(args.seed)}, float32."
        ),
        (
            "Adapters of one concept each (shapes, styles, the attribute, then nouns), loaded in "
            "a shuffled order,"
        ),
        f"one by one up to {APART}, more at once (`load_erasure_adapters`).",
        (
            "Residual: the worst over everything listed. Drift: mean relative change of 128 "
            "preserve captions' states."
        ),
        "",
        (
            "Made at default settings, things and styles use idle neurons, and two files may use "
            "the same ones: adding"
        ),
        (
            "files up breaks them, and `combine_stored` refuses. With `layers=(0, -1)` files may "
            "be added, at the residual shown."
        ),
        "Where a set has more words than idle neurons (50 here) it is solved in blocks.",
        "",
        "| adapters | sum of the edits: residual / drift | the same, `layers=(0, -1)` | "
        "`combine_stored`, `layers=(0, -1)` | as "
        "loaded (joint): residual / drift | after deleting one | off, on again, reverse "
        "order: same bits | joint solve, s | "
        "toggle, ms | kernel, ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        (
            "The toggle is `enable_erasure()` of a set that was solved before. The kernel needs "
            "no text encoder, only the files."
        ),
        "",
    ]
    target = args.page or Path(f"benchmarks/results/stacking-{world.name}.md")
    target.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
