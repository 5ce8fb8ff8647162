"""The page of `examples/compare_methods.py`: ours, UCE and a plain method of one's own, one table.

python benchmarks/one_table.py --folder runs/one-table   # goes on where it stopped
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from common import ROOT, provenance

sys.path.insert(0, str(ROOT / "examples"))
import compare_methods

PAGE = ROOT / "benchmarks" / "results" / "one-table.md"
HEAD = """# Ours, UCE and a method of one's own, in one table

`python benchmarks/one_table.py` wrote this page: {where}. It runs
[examples/compare_methods.py](../../examples/compare_methods.py) as it is: "{target}" becomes
"{anchor}" in the pictures world, {prompts} prompts with {seeds} noises each, {steps} steps. Few
pictures: the page shows what the recipe prints, not which method is better. Seconds were taken on
a shared machine.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "one-table")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = compare_methods.compare_methods(args.folder, seeds=args.seeds)
    head = HEAD.format(
        where=provenance(0),
        target=compare_methods.CONCEPT.target,
        anchor=compare_methods.CONCEPT.anchor,
        prompts=len(compare_methods.PROMPTS),
        seeds=args.seeds,
        steps=compare_methods.STEPS,
    )
    table = "\n".join(compare_methods.format_table(rows))
    page = f"{head}\n{table}\n"
    args.page.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
