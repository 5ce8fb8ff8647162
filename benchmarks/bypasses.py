"""The table of docs/reliability.md: what every route of tests/routes.py does to an erasure."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from common import keep_line, kept_lines, provenance
from diffusers_erasepro import glyphs

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from routes import DTYPES, ROUTES, SHARE, WHERE, Outcome, make_kit, walk_route

START = "<!-- bypasses: start -->"
STOP = "<!-- bypasses: stop -->"


def cell(outcome: Outcome) -> str:
    """What happened, in a few words."""
    if outcome.kind == "error":
        return outcome.why.partition(":")[0].replace("diffusers' own ", "") + (
            "*" if outcome.why.startswith("diffusers") else ""
        )
    kind = "**SILENT**" if outcome.kind == "SILENT" else outcome.kind
    return f"{kind} {outcome.residual:.0e}"


def table(outcomes: dict[tuple[str, str, str], Outcome]) -> list[str]:
    columns = [(w, d) for w in WHERE for d in DTYPES]
    rows = [
        "| route | " + " | ".join(f"{w}, {d}" for w, d in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for route in ROUTES:
        cells = [cell(outcomes[route.name, w, d]) for w, d in columns]
        rows.append(f"| {route.name} | " + " | ".join(cells) + " |")
    return rows


def reasons(outcomes: dict[tuple[str, str, str], Outcome]) -> list[str]:
    """Why routes are listed: `verify_erasure`'s own words, numbers left out."""
    found: dict[str, set[str]] = {}
    for (route, _, _), outcome in outcomes.items():
        if outcome.kind == "listed":
            why = (
                "residual above the threshold" if outcome.why.startswith("verify") else outcome.why
            )
            found.setdefault(why, set()).add(route)
    return [f"- {why}: {'; '.join(sorted(routes))}." for why, routes in sorted(found.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    parser.add_argument(
        "--lines",
        type=Path,
        default=Path("runs/bypasses.jsonl"),
        help="JSON lines of finished cells",
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    made_with, _, commit = provenance(0).rpartition(" ")
    shipped: Any = glyphs.load_pipeline()
    preserve = tuple(glyphs.captions(120, seed=0))
    outcomes = {}
    commits = {}
    for key, told, measured_at in kept_lines(args.lines):
        outcomes[tuple(key)] = Outcome(*told, verified=None)
        commits[tuple(key)] = measured_at
    for where, layers in WHERE.items():
        if all((route.name, where, dtype) in outcomes for route, dtype in product(ROUTES, DTYPES)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            kit = make_kit(shipped, Path(folder), layers, preserve)
            for route in tqdm(ROUTES, desc=where):
                for name, dtype in DTYPES.items():
                    key = (route.name, where, name)
                    if key not in outcomes:
                        found = walk_route(route, kit, shipped, dtype)
                        outcomes[key] = found
                        commits[key] = commit
                        keep_line(
                            args.lines,
                            [key, [found.kind, found.residual, found.share, found.why], commit],
                        )
    counts = Counter(o.kind for o in outcomes.values())
    lines = [
        f"`python benchmarks/bypasses.py` wrote this table: {made_with} "
        + ", ".join(f"{c} ({n} cells)" for c, n in Counter(commits.values()).most_common())
        + ".",
        f"{len(ROUTES)} routes, {len(outcomes)} cells: "
        + ", ".join(f"{counts[k]} {k}" for k in ("holds", "error", "listed"))
        + f", **{counts['SILENT']} silent**.",
        "",
        (
            "- *holds*: the K/V of the target are those of its anchor on the same route without "
            "the erasure; the number is the worst"
        ),
        (
            f"  relative difference (threshold 1e-5, bf16 2e-2), and at most {SHARE} of the "
            "target is left in the drawing."
        ),
        (
            "- *a name*: this error, before a picture is drawn (*: raised by diffusers itself, "
            "with and without us)."
        ),
        "- *listed*: it does not hold exactly, and `verify_erasure` says so.",
        "",
        *table(outcomes),
        "",
        "Why some are listed:",
        "",
        *reasons(outcomes),
    ]
    page = args.page.read_text(encoding="utf-8")
    before = page[: page.index(START) + len(START)]
    after = page[page.index(STOP) :]
    args.page.write_text("\n".join([before, *lines, after]), encoding="utf-8")


if __name__ == "__main__":
    main()
