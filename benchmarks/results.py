"""docs/results.md and docs/report.html: every method on every cell, drawn, judged and shown. Resumes from its JSON lines."""

from __future__ import annotations

import argparse
import base64
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markdown
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import ablation
from common import draw, erased, kept_lines, provenance
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, glyphs
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.erasure.residuals import anchor_states, target_states
from diffusers_erasepro.errors import IllPosedError
from diffusers_erasepro.evaluation.metrics import Estimate
from diffusers_erasepro.evaluation.plots import save_depth, save_grid
from diffusers_erasepro.evaluation.results import UNEDITED, format_table
from diffusers_erasepro.evaluation.runner import OTHER, SCRAMBLED, evaluate
from diffusers_erasepro.evaluation.suites import SUITES, Case
from diffusers_erasepro.families.pipelines import family_of, reader_paths
from diffusers_erasepro.families.types import LAST
from diffusers_erasepro.glyphs.world import FIRST
from diffusers_erasepro.modules.storage import weight_of
from diffusers_erasepro.prompts.alignment import Rows, rows_to_measure, rows_to_solve
from first_light import concepts_of
from quality import settings

PRESERVE = glyphs.captions(400, seed=0)
SHAPES = ("star", "heart", "cross", "ring", "arrow", "diamond", "triangle", "square", "crescent")
STYLES = ("Mira Voss", "Ola Brenn", "Mara Vance", "Tilo Kern", "Odo Brandt")
CELLS: dict[str, tuple[Concept, ...]] = {
    "1 instance": tuple(Concept(s, "circle") for s in SHAPES[:1]),
    "5 instances": tuple(Concept(s, "circle") for s in SHAPES[:5]),
    "9 instances": tuple(Concept(s, "circle") for s in SHAPES),
    "1 style": tuple(Concept(s, "Una Flatt", templates="style") for s in STYLES[:1]),
    "5 styles": tuple(Concept(s, "Una Flatt", templates="style") for s in STYLES),
    "1 attribute": tuple(concept for field, concept in concepts_of(FIRST) if field == "attribute"),
}
"""What is erased jointly."""
METHODS = settings(FIRST)
RECOMMENDED = {
    m: f"{m}: {next(s for n, s in METHODS if n == m)}" for m in dict.fromkeys(m for m, _ in METHODS)
}
"""Method -> the row of its first setting."""
OURS = RECOMMENDED["ours"]
Found = Mapping[str, Mapping[str, Any]]
"""Row -> measure -> number, of one cell."""

INTRODUCTION = """# Results

`python benchmarks/results.py` wrote this page and [one page to carry](report.html): {where}.
{n} pictures per kind of prompt and row (target, other phrasings of it, nearest neighbours, others), 15 steps, guidance 3,
same seeds, held-out phrasings, `evaluate` with suite "glyphs". Preserve list of every method unless said:
`glyphs.captions(400, seed=0)`. Each peer has its recommended setting and others; [peers.md](peers.md) holds them beside
their authors' code. The world has 12 shapes, 7 styles and one attribute, so that "ten instances" are nine (one anchor,
and two for the control), "ten styles" do not exist, and the attribute stands alone.

ACC_e: target still seen (ACC_e2: by the [second judge](second-judge.md)); ACC_a: anchor seen; ACC_ctx: the rest of the
prompt kept; ACC_g: target seen from synonyms and other phrasings; ACC_s: others kept; ACC_near: nearest neighbours kept;
mse, feature, frechet: how far others moved (frechet by the judge's features). Brackets: 95 % intervals.
[cells.md](cells.md) has ours and each cell's best peer again, with 600 pictures a kind and prompts of its own."""
TARGETS = """## What was asked of ours

Per cell: default settings against the best setting of the best peer, which is the one that changes others least among
those that leave at most .05 of the target, or as much as ours. Asked: ACC_e no higher, ACC_s no lower, mse at most half.

"""
VERDICTS = """| cell | ours: ACC_e | ACC_s | mse | best peer | ACC_e | ACC_s | mse | mse ratio | ACC_e | ACC_s | mse |
|---|---|---|---|---|---|---|---|---|---|---|---|"""
LOSSES = """## Where ours loses

Every measure, cell by cell, in which a peer at its recommended setting is better than ours by more than nothing."""
BETTER = {
    "ACC_e": -1,
    "ACC_e2": -1,
    "ACC_g": -1,
    "ACC_a": 1,
    "ACC_ctx": 1,
    "ACC_s": 1,
    "ACC_near": 1,
    "H_o": 1,
    "mse": -1,
    "feature": -1,
    "frechet": -1,
    "seconds": -1,
    "bytes": -1,
}
"""Measure -> 1 where more is better, -1 where less is."""


class Bench:
    """The unedited pipeline, and every method's adapter of a cell."""

    def __init__(self, n: int, seed: int, kept: Path) -> None:
        self.n, self.seed, self.kept = n, seed, kept
        self.pipe = erasable(glyphs.load_pipeline())
        self.refused: dict[tuple[str, str], str] = {}

    def adapters(self, cell: str) -> dict[str, ErasureAdapter]:
        """Row -> adapter; what refuses the cell is noted."""
        spec, made = ErasureSpec(CELLS[cell], preserve=PRESERVE), {}
        for (method, setting), make in METHODS.items():
            row = f"{method}: {setting}"
            try:
                made[row] = make(self.pipe, spec)
            except IllPosedError as error:  # the literal formula meets constraints that contradict
                self.refused[cell, row] = str(error)
        return made

    def found(self, cell: str, made: Mapping[str, ErasureAdapter]) -> Found:
        spec = ErasureSpec(CELLS[cell], preserve=PRESERVE)
        return evaluate(
            self.pipe, spec, made, n=self.n, seed=self.seed, out=self.kept / cell.replace(" ", "-")
        )


# ------------------------------------------------------------------------------------------------ what a page says


def best(rows: Found, bar: float) -> str:
    """The row that keeps most among those that leave at most `bar` of the target; the one that leaves least, if none does."""
    enough = [r for r in rows if rows[r]["ACC_e"].value <= bar]
    return min(enough or rows, key=lambda r: rows[r]["mse" if enough else "ACC_e"].value)


def verdict(cell: str, found: Found, row: str = OURS) -> str:
    ours = found[row]
    peers = {
        r: x
        for r, x in found.items()
        if r not in (UNEDITED, OTHER, SCRAMBLED) and not r.startswith("ours")
    }
    name = best(peers, max(0.05, ours["ACC_e"].value))
    rival, ratio = peers[name], ours["mse"].value / peers[name]["mse"].value
    told = [
        ours["ACC_e"].value <= rival["ACC_e"].value,
        ours["ACC_s"].value >= rival["ACC_s"].value,
        ratio <= 0.5,
    ]
    numbers = [f"{x[m].value:.4g}" for x in (ours, rival) for m in ("ACC_e", "ACC_s", "mse")]
    answers = " | ".join("yes" if t else "**no**" for t in told)
    return f"| {cell} | {' | '.join(numbers[:3])} | {name} | {' | '.join(numbers[3:])} | {ratio:.2f} | {answers} |"


def number(value: Any) -> float:
    return (
        value.value if isinstance(value, Estimate) else math.nan if value is None else float(value)
    )


def losses(cell: str, found: Found) -> list[str]:
    """Lines "measure: ours x, method y" of every measure in which a peer's recommended setting is better."""
    lines = []
    for measure, sign in BETTER.items():
        mine = number(found[OURS].get(measure))
        ahead = {
            m: number(found[r].get(measure))
            for m, r in RECOMMENDED.items()
            if m != "ours" and r in found
        }
        ahead = {m: x for m, x in ahead.items() if sign * (x - mine) > 0}
        if ahead:
            lines.append(
                f"- {cell}, {measure}: ours {mine:.4g}; "
                + ", ".join(f"{m} {x:.4g}" for m, x in ahead.items())
            )
    return lines


def written(bench: Bench, found: Mapping[str, Found], pictures: Sequence[str], lines: Path) -> str:
    text = [INTRODUCTION.format(where=provenance(bench.seed), n=bench.n), "", TARGETS + VERDICTS]
    text += [verdict(cell, rows) for cell, rows in found.items()]
    text += ["", LOSSES, ""] + [line for cell, rows in found.items() for line in losses(cell, rows)]
    text += ["", "## Pictures", "", *pictures, "", "## Every row", ""]
    for cell, rows in found.items():
        concepts = ", ".join(f"{c.target} to {c.anchor}" for c in CELLS[cell])
        text += [f"### {cell}", "", f"{concepts}.", "", format_table(rows), ""]
        text += [f"Refused: {row}: {why}\n" for (c, row), why in bench.refused.items() if c == cell]
    kept = [ablation.Row(**line) for line in kept_lines(lines)]
    text += (
        [
            "## Ablation",
            "",
            "Each choice alone, from the default; [in full](ablation-first.md).",
            "",
        ]
        if kept
        else []
    )
    for concept in dict.fromkeys(r.concept for r in kept):
        text += [
            f"### {concept}",
            "",
            *ablation.table([r for r in kept if r.concept == concept]),
            "",
        ]
    return "\n".join(text)


def carried(text: str, folder: Path) -> str:
    """The page as one HTML file, its pictures inside."""
    body = markdown.markdown(text.replace("](report.html)", "](#)"), extensions=["tables"])

    def inline(match: re.Match[str]) -> str:
        return f'src="data:image/png;base64,{base64.b64encode((folder / match[1]).read_bytes()).decode()}"'

    style = "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:75em}img{max-width:100%}"
    style += "table{border-collapse:collapse;display:block;overflow:auto}"
    style += "td,th{border:1px solid #ccc;padding:.2em .5em;white-space:nowrap}"
    body = re.sub(r'src="(images/[^"]+)"', inline, body)
    return (
        f'<!doctype html><meta charset="utf-8"><title>Results</title><style>{style}</style>{body}\n'
    )


# ------------------------------------------------------------------------------------------------ pictures


def trade_off(path: Path, found: Mapping[str, Found]) -> None:
    """ACC_e against mse above, against ACC_s below; a column per cell, a line per method through its settings."""
    figure = Figure(figsize=(3.2 * len(found), 6.4), layout="constrained")
    for column, (cell, rows) in zip(
        figure.subplots(2, len(found), squeeze=False).T, found.items(), strict=True
    ):
        for method in RECOMMENDED:
            mine = sorted(
                (x for r, x in rows.items() if r.startswith(f"{method}: ")),
                key=lambda x: x["mse"].value,
            )
            for axes, measure in zip(column, ("mse", "ACC_s"), strict=True):
                width = 2.5 if method == "ours" else 1
                axes.plot(
                    [x[measure].value for x in mine],
                    [x["ACC_e"].value for x in mine],
                    "o-",
                    label=method,
                    lw=width,
                )
        column[0].set(
            title=cell, xscale="log", xlabel="mse of others", ylabel="ACC_e", ylim=(-0.03, 1.03)
        )
        column[1].set(xlabel="ACC_s", ylabel="ACC_e", ylim=(-0.03, 1.03))
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def grid(path: Path, bench: Bench, cell: str, shown: Mapping[str, ErasureAdapter]) -> None:
    """Methods down, prompts across, one noise per column."""
    cases = SUITES["glyphs"].cases(bench.pipe, ErasureSpec(CELLS[cell]), 6, bench.seed + 1)  # type: ignore[misc]
    chosen: list[Case] = [
        *cases["target"][:3],
        *cases["general"][:1],
        *cases["near"][:2],
        *cases["other"][:2],
    ]
    pairs: Any = [(case.text, None) for case in chosen]
    rows = {UNEDITED: draw(bench.pipe, pairs, seed=bench.seed)}
    for method, adapter in shown.items():
        with erased(bench.pipe, adapter):
            rows[method] = draw(bench.pipe, pairs, seed=bench.seed)
    save_grid(path, [case.text for case in chosen], rows, title=cell)


@torch.no_grad()
def read(pipe: Any, states: torch.Tensor) -> torch.Tensor:
    """What all K/V linears of the live pipeline make of states `(k, d)`, side by side."""
    weights = [weight_of(pipe.unet, path) for path in reader_paths(pipe.unet, family_of(pipe))]
    return states.double() @ torch.cat(weights).double().T


@torch.no_grad()
def left(pipe: Any, rows: Rows, shown: Mapping[str, ErasureAdapter]) -> dict[str, list[float]]:
    """Per method and position ||K/V(target) - K/V(anchor)|| with the erasure over without: 0 is erased, 1 is untouched."""
    goal = read(pipe, *anchor_states(pipe.text_encoder, rows, [LAST]))
    before = (read(pipe, *target_states(pipe.text_encoder, rows, [LAST])) - goal).norm(dim=1)
    found = {}
    for method, adapter in shown.items():
        with erased(pipe, adapter):
            after = (read(pipe, *target_states(pipe.text_encoder, rows, [LAST])) - goal).norm(dim=1)
        found[method] = (after / before).tolist()
    return found


def histograms(path: Path, bench: Bench, cell: str, shown: Mapping[str, ErasureAdapter]) -> None:
    """What K/V still have of the target at its last token and EOS, on listed and held-out prompts."""
    alignment = ALIGNMENTS["last_subject+eos"]
    rows = rows_to_solve(CELLS[cell], bench.pipe.tokenizer, alignment, soft_budget=0)
    rows |= rows_to_measure(CELLS[cell], PRESERVE, bench.pipe.tokenizer, alignment)
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (kind, title) in zip(
        figure.subplots(1, 2), (("exact", "listed"), ("held_out", "held-out")), strict=True
    ):
        for method, shares in left(bench.pipe, rows[kind], shown).items():
            axes.hist(shares, bins=30, range=(0, 1.5), alpha=0.5, label=method)
        axes.set(title=f"{cell}: {title} prompts", xlabel="target left in K/V")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def drawn(bench: Bench, cell: str, made: Mapping[str, ErasureAdapter], folder: Path) -> list[str]:
    """A cell's pictures, as Markdown."""
    names = {
        kind: f"images/results-{kind}-{cell.replace(' ', '-')}.png"
        for kind in ("grid", "left", "depth")
    }
    shown = {method: made[row] for method, row in RECOMMENDED.items() if row in made}
    grid(folder / names["grid"], bench, cell, shown)
    histograms(folder / names["left"], bench, cell, shown)
    sizes = {
        method: [layer.edit_size for layer in adapter.report.layers]
        for method, adapter in shown.items()
    }
    save_depth(
        folder / names["depth"], sizes, title=cell, label="edited layers, shallow to deep", log=True
    )
    return [f"![{cell}: {kind}]({name})\n" for kind, name in names.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=48, help="pictures per kind of prompt and row")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--kept", type=Path, default=Path("runs/results"), help="JSON lines of finished pictures"
    )
    parser.add_argument(
        "--ablation",
        type=Path,
        default=Path("runs/ablation-first.jsonl"),
        help="lines of ablation.py",
    )
    parser.add_argument(
        "--page", type=Path, default=Path("docs/results.md"), help="report.html goes beside it"
    )
    parser.add_argument("--cells", nargs="*", default=list(CELLS))
    args = parser.parse_args()
    bench, folder = Bench(args.n, args.seed, args.kept), args.page.parent
    found, pictures = dict[str, Found](), ["![trade-off](images/results-trade-off.png)\n"]
    for cell in tqdm(args.cells, desc="cells"):
        made = bench.adapters(cell)
        found[cell] = bench.found(cell, made)
        pictures += drawn(bench, cell, made, folder)
        trade_off(folder / "images/results-trade-off.png", found)
        text = written(bench, found, pictures, args.ablation)
        args.page.write_text(text)
        (folder / "report.html").write_text(carried(text, folder))


if __name__ == "__main__":
    main()
