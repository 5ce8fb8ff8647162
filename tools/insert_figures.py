"""Fill in the figures of the README and the documents from the files in benchmarks/results.

    python tools/insert_figures.py           # writes them
    python tools/insert_figures.py --check   # names the pages that differ from the files

A comment behind a figure says where it comes from: a file, words that choose its row, a column.

    0.29<!-- one-concept-first.md; cross; UCE; mse of others -->

Each word is a cell of the row, or the heading above its table. Of a cell with several numbers the
first is shown; "all:" before the file shows the whole cell, and "most:" the whole cell with the
largest number of several rows. A result file is Markdown with tables, in benchmarks/results or in
docs, or JSON lines with one record per row. A figure is a dash until its file exists.

A table with one column per file stands between two comments, and the second is `end of table`:

    <!-- table: stacking-first.md + stacking-second.md; adapters; joint solve, s -->

The file names, the column that names the rows, further columns ("COLUMN as HEAD" shows it under
another name). "heading: TEXT" behind the file names chooses among several tables; those under one
heading are one. "rows: TEXT" then chooses the rows whose name begins so. A file that does not exist
has no column.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
MISSING = "-"
"""What stands for a figure whose file does not exist yet."""
FIGURE = re.compile(
    r"(?P<value>-|[-+]?\d[\w.,+-]*%?(?: \([^()]*\))?)"
    r"<!-- (?P<how>(?:all: |most: )?)(?P<source>[\w-]+\.(?:md|jsonl); [^<>]*) -->"
)
TABLE = re.compile(
    r"(?P<begin><!-- table: (?P<source>[^<>]*\.md[^<>]*; [^<>]*) -->\n)"
    r".*?(?P<end><!-- end of table -->)",
    re.DOTALL,
)
HEADING = "heading"
"""The key of a row under which the heading above its table stands."""
Row = Mapping[str, str]


class FigureError(Exception):
    """A comment that chooses no row, several rows, or a column that is not there."""


def pages() -> list[Path]:
    """The README and every document."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rows_of(name: str) -> tuple[Row, ...]:
    """All rows of the result file of that name."""
    return read_rows(RESULTS / name) or read_rows(DOCS / name)


@cache
def read_rows(path: Path) -> tuple[Row, ...]:
    """All rows of a result file; none if it does not exist."""
    if not path.exists():
        return ()
    text = path.read_text(encoding="utf-8")
    return tuple(parse_lines(text) if path.suffix == ".jsonl" else parse_tables(text))


def parse_lines(text: str) -> Iterator[Row]:
    """One row per JSON record, values as text."""
    for line in text.splitlines():
        record = json.loads(line)
        yield {key: str(value) for key, value in record.items()}


def parse_tables(text: str) -> Iterator[Row]:
    """The rows of every Markdown table, by column, with the heading above."""
    heading = ""
    columns: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not columns:
            columns = number_repeats([column or "row" for column in cells])
        elif not set(line) <= set("|-: "):
            yield {HEADING: heading, **dict(zip(columns, cells, strict=False))}


def number_repeats(columns: list[str]) -> list[str]:
    """Columns of one table by names of their own: the second "mse" is "mse 2"."""
    names = []
    for i, column in enumerate(columns):
        repeats = columns[:i].count(column)
        names.append(f"{column} {repeats + 1}" if repeats else column)
    return names


def find_cell(source: str, *, most: bool = False) -> str:
    """The cell that a comment names, or a dash.

    Args:
        source: File, words of the row, column.
        most: Of several rows, the one with the largest number.

    Raises:
        FigureError: No row or several have the words, or the row has no such column.
    """
    name, *words, column = source.split("; ")
    rows = rows_of(name)
    if not rows:
        return MISSING
    chosen = [row for row in rows if {*words} <= {*row.values()}]
    cells = {row[column].replace("*", "") for row in chosen if row.get(column, MISSING) != MISSING}
    if most and cells:
        return max(cells, key=lambda cell: float(first_number(cell)))
    if len(cells) != 1:
        raise FigureError(f"{source}: {len(chosen)} rows, {len(cells)} values of {column!r}; one")
    return cells.pop()


def first_number(cell: str) -> str:
    """The first of the numbers that a cell says."""
    return cell.split()[0].rstrip(",;")


def fill_figure(match: re.Match[str]) -> str:
    """A figure and its comment, the figure as the file has it."""
    cell = find_cell(match["source"], most=match["how"] == "most: ")
    shown = cell if match["how"] else first_number(cell)
    return shown + match[0].removeprefix(match["value"])


def take_option(words: list[str], name: str) -> str:
    """What stands behind `name` in the first of the words, which is then taken out."""
    return words.pop(0).removeprefix(name) if words[0].startswith(name) else ""


def join_rows(rows: tuple[Row, ...], key: str, heading: str) -> dict[str, dict[str, str]]:
    """Label -> cells, of all tables under a heading that have the column `key`."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if key in row and row.get(HEADING, "").startswith(heading):
            found.setdefault(row[key], {}).update(row)
    return found


def fill_table(match: re.Match[str]) -> str:
    """A table and its comments, the table joined anew from its files."""
    names, *words = match["source"].split("; ")
    heading = take_option(words, "heading: ")
    begin = take_option(words, "rows: ")
    key, *columns = words
    shown = key.rpartition(" as ")[2]
    key = key.partition(" as ")[0]
    found = {}
    for name in names.split(" + "):
        rows = rows_of(name)
        world = Path(name).stem.rpartition("-")[2]
        joined = join_rows(rows, key, heading)
        kept = {label: row for label, row in joined.items() if label.startswith(begin)}
        if kept:
            found[world] = kept
        elif rows:
            raise FigureError(f"{match['source']}: no such rows in {name}")
    if not found:
        return match["begin"] + "\nNot measured yet.\n\n" + match["end"]
    heads = [column.rpartition(" as ")[2] for column in columns]
    columns = [column.partition(" as ")[0] for column in columns]
    head = [f"{column}: {world}" for column in heads for world in found]
    if len(found) == 1:
        head = heads
    lines = [f"| {shown} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for label in dict.fromkeys(label for rows in found.values() for label in rows):
        cells = []
        for column in columns:
            cells += [rows.get(label, {}).get(column, MISSING) for rows in found.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return match["begin"] + "\n" + "\n".join(lines) + "\n\n" + match["end"]


def insert_figures(text: str) -> str:
    """A page with every marked figure and table as the result files have it."""
    return TABLE.sub(fill_table, FIGURE.sub(fill_figure, text))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a page differs"
    )
    args = parser.parse_args()
    differ = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        filled = insert_figures(text)
        if filled != text:
            differ.append(page.relative_to(ROOT))
            if not args.check:
                page.write_text(filled, encoding="utf-8")
    print("\n".join(f"{'differs' if args.check else 'written'}: {page}" for page in differ))
    return int(args.check and bool(differ))


if __name__ == "__main__":
    sys.exit(main())
