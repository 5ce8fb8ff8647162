"""The numbers of docs/quality-*.md: ours beside UCE, SPEED, RECE and the literal formula, each over its settings."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from common import (
    FIELDS,
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
    wilson,
)
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.adapters.report import NAN
from diffusers_erasepro.baselines import literal, rece, speed, uce
from diffusers_erasepro.errors import IllPosedError
from diffusers_erasepro.evaluation.metrics import ratio
from diffusers_erasepro.glyphs.world import WORLDS, World
from first_light import FLIP, concepts_of

SIX = ("{}", "a {}", "a photo of a {}", "the {}", "a painting of a {}", "one {}")
Make = Callable[[Any, ErasureSpec], ErasureAdapter]


def settings(world: World) -> dict[tuple[str, str], Make]:
    """Method and setting -> how to make its adapter. The first of a method is the recommended one."""
    words = (*world.shapes, *world.styles, *world.colors, *world.backgrounds)
    return {
        ("ours", "default"): erase,
        ("ours", "soft_weight .03"): partial(erase, soft_weight=0.03),
        ("ours", "layers (1, -1)"): partial(erase, layers=(1, -1)),
        ("UCE", "400 captions"): uce,
        ("UCE", "words only"): lambda pipe, spec: uce(pipe, spec, preserve=unnamed(words, spec)),
        ("UCE", "400 captions, erase x 10"): partial(uce, erase_scale=10.0),
        ("UCE", "400 captions, six templates"): partial(uce, templates=SIX),
        ("SPEED", "V, threshold .1"): speed,
        ("SPEED", "K and V, threshold .1"): partial(speed, readers="kv"),
        ("SPEED", "K and V, threshold .01"): partial(speed, readers="kv", threshold=0.01),
        ("RECE", "regulariser 1e-3"): rece,
        ("literal", "identity"): literal,
    }


def unnamed(words: Sequence[str], spec: ErasureSpec) -> tuple[str, ...]:
    """`words` without the targets."""
    targets = {w for c in spec.concepts for w in c.words}
    return tuple(w for w in words if w not in targets)


def cells(world: World) -> dict[str, tuple[Concept, ...]]:
    """What is erased jointly."""
    shapes, styles, attribute = (
        tuple(c for f, c in concepts_of(world) if f == kind)
        for kind in ("shape", "style", "attribute")
    )
    return {
        "1 shape": shapes[:1],
        "4 shapes": shapes,
        "2 styles": styles,
        "attribute": attribute,
        "all seven": (*shapes, *styles, *attribute),
    }


@dataclass(frozen=True)
class Row:
    """One cell under one setting of one method."""

    cell: str
    method: str
    setting: str
    target: float
    """Share of target prompts whose picture still shows the target."""
    others: float
    """Accuracy on prompts without any of the concepts."""
    mse: float
    """Mean change of those pictures, same seeds."""
    median: float


class Bench:
    """The unedited pictures of every cell, and any adapter's beside them."""

    def __init__(self, world: World, folder: Path, n: int, seed: int) -> None:
        self.world, self.n, self.seed, self.cells = world, n, seed, cells(world)
        self.pipe, self.judge = erasable(glyphs.load_pipeline(folder)), glyphs.load_judge(folder)
        self.preserve = tuple(glyphs.captions(400, seed=0, world=world))
        self.others = prompts_without(
            self.cells["all seven"], n, seed=seed, held_out=True, world=world
        )
        self.base = draw(self.pipe, self.others, seed=seed)

    def row(self, cell: str, method: str, setting: str, make: Make | None) -> Row:
        concepts = self.cells[cell]
        if make is None:
            return self.measured(cell, method, setting)
        try:
            adapter = make(self.pipe, ErasureSpec(concepts, preserve=self.preserve))
        except IllPosedError as error:  # the literal formula meets constraints that contradict
            tqdm.write(f"{cell}, {method}, {setting}: {error}")
            return Row(cell, method, setting, NAN, NAN, NAN, NAN)
        with erased(self.pipe, adapter):
            return self.measured(cell, method, setting)

    def measured(self, cell: str, method: str, setting: str) -> Row:
        share = -(-self.n // len(self.cells[cell]))
        shown = []
        for concept in self.cells[cell]:
            pairs = prompts_with(concept, share, seed=self.seed, held_out=True, world=self.world)
            told = self.judge(draw(self.pipe, pairs, seed=self.seed, desc=f"{cell}: {method}"))
            shown.append(rate(told, kind_of(self.world, concept), concept.target))
        images = (
            self.base
            if method == "unedited"
            else draw(self.pipe, self.others, seed=self.seed, desc="others")
        )
        moved = change(images, self.base)
        correct = accuracy(self.judge(images), self.others)
        return Row(
            cell,
            method,
            setting,
            float(np.mean(shown)),
            correct,
            float(moved.mean()),
            float(np.median(moved)),
        )


def best(rows: Sequence[Row], bar: float) -> Row:
    """The setting that keeps most among those that leave at most `bar` of the target; the one that leaves least, if none does."""
    return min(
        (r for r in rows if r.target <= bar),
        key=lambda r: r.mse,
        default=min(rows, key=lambda r: r.target),
    )


def best_peer(rows: Sequence[Row]) -> Row:
    """The best setting of the best peer of ours, which comes first."""
    bar, rows = max(0.05, rows[0].target), [r for r in rows if not math.isnan(r.target)]
    peers = [
        best([r for r in rows if r.method == m], bar)
        for m in dict.fromkeys(r.method for r in rows)
        if m != "ours"
    ]
    return best([r for r in peers if r.target <= bar] or peers, bar)


def verdict(rows: Sequence[Row]) -> str:
    """Ours against the best setting of the best peer: erased no less, kept no worse, half the change."""
    ours, rival = rows[0], best_peer(rows)
    holds = (
        ours.target <= max(0.05, rival.target)
        and ours.others >= rival.others - 0.005
        and ours.mse <= 0.5 * rival.mse
    )
    return (
        f"| {ours.cell} | {ours.target:.3f} | {ours.others:.3f} | {ours.mse:.6f} | {rival.method}, {rival.setting} | "
        f"{rival.target:.3f} | {rival.others:.3f} | {rival.mse:.6f} | {ours.mse / rival.mse:.2f} | "
        f"{ours.median / rival.median:.2f} | {'yes' if holds else '**no**'} |"
    )


def again(args: argparse.Namespace, bench: Bench, found: dict[str, list[Row]]) -> list[str]:
    """Ours and the best peer of each cell on other prompts and noise, which had no part in choosing that peer."""
    others = prompts_without(
        bench.cells["all seven"], args.more, seed=args.seed + 1, held_out=True, world=bench.world
    )
    said = torch.tensor([all(getattr(scene, f) for f in FIELDS) for _, scene in others])
    base, makes = (
        draw(bench.pipe, others, seed=args.seed + 1, desc="unedited"),
        settings(bench.world),
    )
    lines = [
        "## Again, with other prompts and more of them",
        "",
        f"Ours and the peer of the table above on {args.more} other prompts and noise of seed {args.seed + 1}, which chose",
        "nothing. Mean change in sum, ours over the peer's, with a paired bootstrap; 'all said' are the "
        f"{int(said.sum())} prompts that leave neither colour, background nor artist open.",
        "",
        "| erased | peer | mse, ours | peer's | ratio (95 %) | all said | median ratio | flipped, ours | peer's | others "
        "right, ours | peer's |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, rows in found.items():
        peer, spec, moved, right = (
            best_peer(rows),
            ErasureSpec(bench.cells[cell], preserve=bench.preserve),
            [],
            [],
        )
        for row in (rows[0], peer):
            with erased(bench.pipe, makes[row.method, row.setting](bench.pipe, spec)):
                images = draw(
                    bench.pipe, others, seed=args.seed + 1, desc=f"{cell}: {row.method}, again"
                )
            moved.append(torch.as_tensor(change(images, base)).double())
            right.append(accuracy(bench.judge(images), others))
        ours, theirs = moved
        told = ratio(ours.tolist(), theirs.tolist(), "mse ratio")
        lines.append(
            f"| {cell} | {peer.method}, {peer.setting} | {ours.mean():.6f} | {theirs.mean():.6f} | {told.value:.2f} "
            f"({told.low:.2f} to {told.high:.2f}) | {ours[said].sum() / theirs[said].sum():.2f} | "
            f"{ours.median() / theirs.median():.2f} | {int((ours > FLIP).sum())} | {int((theirs > FLIP).sum())} | "
            f"{right[0]:.4f} | {right[1]:.4f} |"
        )
    return [*lines, ""]


def plot(path: Path, found: dict[str, list[Row]]) -> None:
    """Share still drawn against change of others, one panel per cell, a line per method through its settings."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    for axes, (cell, rows) in zip(figure.subplots(2, 3).flat, found.items(), strict=False):
        for method in dict.fromkeys(r.method for r in rows):
            line = sorted((r for r in rows if r.method == method), key=lambda r: r.mse)
            axes.plot(
                [r.mse for r in line],
                [r.target for r in line],
                "o-",
                label=method,
                lw=2.5 if method == "ours" else 1,
            )
        axes.set(
            title=cell,
            xscale="log",
            ylim=(-0.03, 1.03),
            xlabel="mse of other pictures",
            ylabel="target still drawn",
        )
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def page(
    args: argparse.Namespace, where: str, found: dict[str, list[Row]], base: dict[str, Row]
) -> list[str]:
    picture = f"quality-{args.world}.png"
    plot(args.page.parent / "images" / picture, found)
    lines = [
        f"# Ours beside the peers, on the {args.world} world",
        "",
        f"`python benchmarks/quality.py --world {args.world}` wrote this page: {where};",
        f"{args.n} target and {args.n} other images per row, 15 steps, guidance 3, held-out phrasings,",
        "same seeds. Preserve list of every method unless said:",
        "`glyphs.captions(400, seed=0)`. Peers are `diffusers_erasepro.baselines`; docs/peers.md holds them beside their",
        "authors' code.",
        "",
        "## Ours at default settings against the best peer at its best setting",
        "",
        "Best: the least change of other pictures among settings that leave at most .05 of the target, or as much as ours.",
        "Holds: erases no less (or within .05), accuracy on others no lower (.005 allowed), mean change at most half.",
        "Where it does not: [what was tried](architecture.md#where-it-falls-short-and-what-was-tried).",
        "",
        "| erased | ours: drawn | others | mse | best peer | drawn | others | mse | mse ratio | median ratio | holds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(verdict(rows) for rows in found.values()),
        "",
        f"![trade-off](images/{picture})",
        "",
        "## Every row",
        "",
        "| erased | method | setting | target still drawn (95 %) | others | mse of others | median |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell, rows in found.items():
        for r in (base[cell], *rows):
            if math.isnan(r.target):
                lines.append(
                    f"| {r.cell} | {r.method} | {r.setting} | refused: its constraints contradict | | | |"
                )
                continue
            low, high = wilson(r.target, args.n)
            lines.append(
                f"| {r.cell} | {r.method} | {r.setting} | {r.target:.3f} ({low:.2f} to {high:.2f}) | {r.others:.3f} | "
                f"{r.mse:.6f} | {r.median:.6f} |"
            )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200, help="images per row")
    parser.add_argument(
        "--more",
        type=int,
        default=0,
        help="other prompts for ours and each cell's best peer, once more",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--world", choices=sorted(WORLDS), default="first")
    parser.add_argument(
        "--folder", type=Path, default=glyphs.WEIGHTS, help="where that world's weights are"
    )
    parser.add_argument(
        "--lines",
        type=Path,
        help="JSON lines of finished rows, to go on from (default: runs/quality-WORLD.jsonl)",
    )
    parser.add_argument("--page", type=Path, help="default: docs/quality-WORLD.md")
    parser.add_argument("--cells", nargs="*", help="default: all")
    args = parser.parse_args()
    args.page = args.page or Path(f"docs/quality-{args.world}.md")
    where, world = provenance(args.seed), WORLDS[args.world]
    lines = args.lines or Path(f"runs/quality-{args.world}.jsonl")
    rows = {(r.cell, r.method, r.setting): r for r in (Row(**line) for line in kept_lines(lines))}
    bench = Bench(world, args.folder, args.n, args.seed)
    cells = args.cells or list(bench.cells)
    makes: dict[tuple[str, str], Make | None] = {("unedited", "-"): None, **settings(world)}
    for cell, method, setting in tqdm([(c, *key) for c in cells for key in makes], desc="rows"):
        if (cell, method, setting) not in rows:
            rows[cell, method, setting] = row = bench.row(
                cell, method, setting, makes[method, setting]
            )
            keep_line(lines, asdict(row))
    found = {cell: [rows[cell, *key] for key in settings(world)] for cell in cells}
    base = {cell: rows[cell, "unedited", "-"] for cell in cells}
    text = page(args, where, found, base)
    args.page.write_text("\n".join(text + (again(args, bench, found) if args.more else [])))


if __name__ == "__main__":
    main()
