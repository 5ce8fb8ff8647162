"""The numbers of docs/ablation-*.md: each choice of the method changed alone, from the default."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers_erasepro.families.variants import sites_of
from tqdm.auto import tqdm

from common import (
    accuracy,
    change,
    draw,
    erased,
    keep_line,
    kept_lines,
    kind_of,
    prompts_with,
    prompts_without,
    provenance,
    rate,
)
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.adapters.report import NAN
from diffusers_erasepro.erasure.auto_layers import Look
from diffusers_erasepro.erasure.covariance import metrics, record_inputs
from diffusers_erasepro.erasure.residuals import aligned_states, relative
from diffusers_erasepro.errors import IllPosedError
from diffusers_erasepro.glyphs.world import WORLDS, World
from diffusers_erasepro.modules.fingerprint import fingerprints
from diffusers_erasepro.modules.linear import base_linear
from diffusers_erasepro.patching.weights import resolve_edits
from diffusers_erasepro.prompts.pairs import ALIGNMENTS, rows_to_solve, text_paths
from first_light import concepts_of

Make = Callable[[Any, ErasureSpec], ErasureAdapter]
PRESERVE, COUNTS = 400, (100, 1600)
"""Captions of the preserve list, and other lengths of it."""


@dataclass(frozen=True)
class Row:
    concept: str
    choice: str
    layers: str
    listed: float
    held_out: float
    drift: float
    """Mean relative change of the preserve captions' states."""
    residual_seen: float
    """`denoiser_residual`: what the noise predictions still have of the target."""
    drift_seen: float
    """`denoiser_drift`."""
    sizes: tuple[float, ...]
    """||D||/||W|| per edited layer."""
    rank: int
    drawn: float
    """Share of target prompts whose picture still shows the target."""
    others: float
    """Accuracy on prompts without it."""
    mse: float
    """Mean change of those pictures, same seeds."""
    median: float
    why: str = ""
    """Why no edit was made."""


def clearest(pipe: Any, spec: ErasureSpec) -> int:
    """The block whose writer tells the target best from the preserve captions (CLEAR, arXiv 2605.25941, our reading).

    The Mahalanobis distance of what it receives at the constrained positions, sqrt(x' C^-1 x), on average.
    """
    (path,) = text_paths(pipe)
    encoder = path.encoder
    sites = sites_of(encoder, range(len(encoder.encoder.layers) - 1), "block")
    linears = {site.linear: base_linear(encoder.get_submodule(site.linear)) for site in sites}
    rows = rows_to_solve(spec.concepts, path, ALIGNMENTS["last_subject+eos"], soft_budget=0)[
        "exact"
    ]
    kept, empty = path.tokens(spec.preserve_captions()), path.empty()
    with torch.no_grad():
        L = metrics(
            encoder, kept, kept[:0], empty, linears, key=str(fingerprints(encoder, {})), ridge=0.01
        )
        with record_inputs(linears) as seen:
            encoder(rows.target.ids)
    far = [
        torch.linalg.solve_triangular(L[n], x[rows.row, rows.target_at].double().T, upper=False)
        for n, x in seen.items()
    ]
    return max(range(len(far)), key=lambda i: float(far[i].norm(dim=0).mean()))


def by_clear(pipe: Any, spec: ErasureSpec) -> ErasureAdapter:
    """The early block that CLEAR's criterion chooses."""
    return erase(pipe, spec, layers=(clearest(pipe, spec), -1))


def apart(pipe: Any, spec: ErasureSpec) -> ErasureAdapter:
    """Blocks 0 and last without their order: the closing one is solved as if the early one stayed unedited."""
    whole, parts = BLOCKS(pipe, spec), [erase(pipe, spec, layers=(block,)) for block in (0, -1)]
    edits = {name: factors for part in parts for name, factors in part.edits.items()}
    layers = [layer for part in parts for layer in part.report.layers]
    (path,) = text_paths(pipe)
    rows = rows_to_solve(spec.concepts, path, ALIGNMENTS["last_subject+eos"], soft_budget=0)[
        "exact"
    ]
    made = replace(whole, edits=edits)
    with torch.no_grad():
        have, goal = aligned_states(
            path.encoder, rows, resolve_edits(path.encoder, "text_encoder", made)
        )
    numbers = {
        "listed_residual": float(relative(have, goal).max()),
        "held_out_mean": NAN,
        "drift": NAN,
    }
    return replace(made, report=replace(whole.report, layers=tuple(layers), **numbers))


BLOCKS = partial(erase, layers=(0, -1))
CHOICES: dict[str, Make] = {
    "default": erase,
    "blocks 0 and last": BLOCKS,
    "word neurons and last": partial(erase, layers=("neurons", -1)),
    "EOS neurons and last": partial(erase, layers=("eos_neurons", -1)),
    "both neurons and last": partial(erase, layers=("neurons", "eos_neurons", -1)),
    "closing block alone": partial(erase, layers=(-1,)),
    "first block alone": partial(erase, layers=(0,)),
    "blocks 1 and last": partial(erase, layers=(1, -1)),
    "blocks 2 and last": partial(erase, layers=(2, -1)),
    "blocks 3 and last": partial(erase, layers=(3, -1)),
    "block 0, then K/V": partial(erase, layers=(0, "kv")),
    "K/V alone": partial(erase, layers=("kv",)),
    "auto": partial(erase, layers="auto"),
    "the block CLEAR chooses, and last": by_clear,
    "0 and last, each as if alone": apart,
    "every linear (the paper's formula)": partial(BLOCKS, variant="linear"),
    "identity metric": partial(BLOCKS, metric="identity"),
    "last subject token": partial(BLOCKS, alignment="last_subject"),
    "whole subject, EOS": partial(BLOCKS, alignment="subject+eos"),
    "subject to EOS": partial(BLOCKS, alignment="subject_to_eos"),
    "no soft prompts": partial(BLOCKS, soft_budget=0),
    "8 soft prompts": partial(BLOCKS, soft_budget=8),
    "soft weight .001": partial(BLOCKS, soft_weight=0.001),
    "soft weight .01": partial(BLOCKS, soft_weight=0.01),
    "soft weight .1": partial(BLOCKS, soft_weight=0.1),
    "ridge .001": partial(BLOCKS, ridge=0.001),
    "ridge .1": partial(BLOCKS, ridge=0.1),
    "rank at most 16": partial(BLOCKS, max_rank=16),
}
"""Choice -> how its adapter is made."""
CHAINS = [*CHOICES][:14]
"""Those that differ in their layers alone, and say which."""
CHOSEN = {
    "first": "Defaults are chosen by this page",
    "second": "Defaults chosen on the first world are doubted here",
}


class Bench:
    """A world, and the unedited pictures of its concepts."""

    def __init__(self, world: World, folder: Path, n: int, seed: int) -> None:
        self.world, self.n, self.seed = world, n, seed
        self.pipe, self.judge = erasable(glyphs.load_pipeline(folder)), glyphs.load_judge(folder)
        found = dict(reversed(concepts_of(world)))
        self.concepts: Sequence[Concept] = tuple(
            found[field] for field in ("shape", "style", "attribute")
        )
        self.others = prompts_without(self.concepts, n, seed=seed, held_out=False, world=world)
        self.base = draw(self.pipe, self.others, seed=seed)
        self.looks: dict[str, Look] = {}

    def spec(self, concept: Concept, count: int, *, seed: int = 0) -> ErasureSpec:
        return ErasureSpec(
            (concept,), preserve=tuple(glyphs.captions(count, seed=seed, world=self.world))
        )

    def row(self, concept: Concept, choice: str, make: Make, count: int) -> Row:
        try:
            adapter = make(self.pipe, self.spec(concept, count))
        except IllPosedError as error:
            return Row(
                concept.target,
                choice,
                "-",
                NAN,
                NAN,
                NAN,
                NAN,
                NAN,
                (),
                0,
                NAN,
                NAN,
                NAN,
                NAN,
                str(error),
            )
        return self.measured(concept, choice, adapter)

    def measured(self, concept: Concept, choice: str, adapter: ErasureAdapter) -> Row:
        name, report = concept.target, adapter.report
        if name not in self.looks:
            with torch.no_grad():
                self.looks[name] = Look.at(
                    self.pipe, self.spec(concept, PRESERVE, seed=9)
                )  # captions no metric has seen
        residual, drift = self.looks[name].compare(adapter)
        targets = prompts_with(concept, self.n, seed=self.seed, held_out=False, world=self.world)
        with erased(self.pipe, adapter):
            told = self.judge(draw(self.pipe, targets, seed=self.seed))
            images = draw(self.pipe, self.others, seed=self.seed)
        moved = change(images, self.base)
        layers = "+".join(map(str, adapter.options.layers))
        return Row(
            name,
            choice,
            layers,
            report.listed_residual,
            report.held_out_mean,
            report.drift,
            residual,
            drift,
            tuple(round(x.edit_size, 3) for x in report.layers),
            max(x.rank for x in report.layers),
            rate(told, kind_of(self.world, concept), name),
            accuracy(self.judge(images), self.others),
            float(moved.mean()),
            float(np.median(moved)),
        )


def table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| choice | layers | listed | held out | drift | denoiser: residual | drift | edit size, shallow to deep | rank "
        "| drawn | others right | mse of others | median |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if r.why:
            lines.append(f"| {r.choice} | refused: {r.why} | | | | | | | | | | | |")
            continue
        sizes = ", ".join(f"{s:.2f}" for s in r.sizes[:4]) + (
            f" ... {r.sizes[-1]:.2f}" if len(r.sizes) > 4 else ""
        )
        lines.append(
            f"| {r.choice} | {r.layers} | {r.listed:.1e} | {r.held_out:.3f} | {r.drift:.4f} | {r.residual_seen:.3f} | "
            f"{r.drift_seen:.4f} | {sizes} | {r.rank} | {r.drawn:.3f} | {r.others:.3f} | {r.mse:.6f} | {r.median:.7f} |"
        )
    return lines


def chains(found: dict[str, list[Row]]) -> list[str]:
    """Which layers: "auto", CLEAR's criterion and every fixed chain, over the concepts together."""
    heads = (
        "layers",
        "denoiser residual, worst",
        "denoiser drift, mean",
        "drawn, worst",
        "mse of others, mean",
        "median, mean",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for choice in CHAINS:
        rows = [
            row for kept in found.values() for row in kept if row.choice == choice and not row.why
        ]
        lines.append(
            f"| {choice} | {max(r.residual_seen for r in rows):.3f} | {fmean(r.drift_seen for r in rows):.4f} | "
            f"{max(r.drawn for r in rows):.3f} | {fmean(r.mse for r in rows):.6f} | {fmean(r.median for r in rows):.7f} |"
        )
    return lines


def page(world: str, where: str, n: int, found: dict[str, list[Row]]) -> str:
    lines = [
        f"# Each choice alone, on the {world} world",
        "",
        f"`python benchmarks/ablation.py --world {world}` wrote this page: {where}; {n} target and {n} other pictures per row,",
        f"15 steps, guidance 3, same seeds. {CHOSEN[world]}, so its pictures come from training phrasings;",
        "only the column 'held out' measures phrasings that no edit was solved for. The default takes layers by kind; the",
        "choices after the chains each differ from blocks 0 and last, which every concept can take.",
        "Denoiser: noise predictions instead of pictures (`denoiser.Look`); residual is what is left of the target, drift how",
        "far captions move that no metric has seen. CLEAR chooses the early block by how far the target lies from the",
        "preserve captions.",
        "",
        "## Auto, CLEAR and every fixed chain",
        "",
        *chains(found),
    ]
    for concept, rows in found.items():
        lines += ["", f"## {concept}", "", *table(rows)]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=32, help="images per cell")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--world", choices=sorted(WORLDS), default="first")
    parser.add_argument(
        "--folder", type=Path, default=glyphs.WEIGHTS, help="where that world's weights are"
    )
    parser.add_argument(
        "--lines",
        type=Path,
        help="JSON lines of finished rows (default: runs/ablation-WORLD.jsonl)",
    )
    args = parser.parse_args()
    where, lines = provenance(args.seed), args.lines or Path(f"runs/ablation-{args.world}.jsonl")
    rows = {(r.concept, r.choice): r for r in (Row(**line) for line in kept_lines(lines))}
    bench = Bench(WORLDS[args.world], args.folder, args.n, args.seed)
    asked: list[tuple[str, Make, int]] = [(name, make, PRESERVE) for name, make in CHOICES.items()]
    asked += [(f"{count} preserve captions", erase, count) for count in COUNTS]
    every = [(concept, *choice) for concept in bench.concepts for choice in asked]
    for concept, name, make, count in tqdm(every, desc="choices"):
        if (concept.target, name) not in rows:
            rows[concept.target, name] = row = bench.row(concept, name, make, count)
            keep_line(lines, asdict(row))
    found = {c.target: [rows[c.target, name] for name, *_ in asked] for c in bench.concepts}
    Path(f"docs/ablation-{args.world}.md").write_text(page(args.world, where, args.n, found))


if __name__ == "__main__":
    main()
