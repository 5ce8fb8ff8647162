"""The table of docs/loading.md: an erasure on every way of loading a pipeline.

`python benchmarks/loading.py` tries what is not in loading.jsonl yet; with words, such as "compile"
or "T5", the rows or columns that have them in their names are tried again. Ended early, it draws
the page of what there is. quanto and SDNQ are no requirements of this package: where they are not
installed, their rows say so.
"""

import json
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tqdm.auto import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import loading  # noqa: E402
from common import commit  # noqa: E402

PAGE = ROOT / "docs" / "loading.md"
LINES = Path(__file__).with_suffix(".jsonl")
START = "<!-- table: benchmarks/loading.py -->"
END = "<!-- end of table -->"
SECONDS = 200
"""Of CPU that one cell may take."""
LONGEST = 260
"""Characters of a message that the page shows."""
Key = tuple[str, str, str]


class TooLongError(BaseException):
    """One cell took longer than `SECONDS`; no error that a cell may catch."""


def stop(*_: object) -> None:
    raise TooLongError


def every_key() -> Iterator[Key]:
    """Architecture, layers and way of every cell."""
    for architecture, layers, way in loading.cells():
        yield architecture, layers, way.title


def try_in_time(key: Key) -> loading.Cell:
    """`loading.try_cell`, ended after `SECONDS`."""
    architecture, layers, title = key
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return loading.try_cell(architecture, layers, loading.way_named(title))
    except TooLongError:
        why = f"took longer than {SECONDS} s of CPU"
        return loading.Cell(title, architecture, layers, "not tried", why)
    except Exception as error:  # the referee itself fails; the other cells go on
        why = f"the referee: {type(error).__name__}: {error}"
        return loading.Cell(title, architecture, layers, "not tried", why)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def read_lines() -> dict[Key, dict[str, Any]]:
    """What was found, by cell; of one that was tried again, the last."""
    if not LINES.is_file():
        return {}
    rows = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    return {(row["architecture"], row["layers"], row["way"]): row for row in rows}


def write_lines(rows: dict[Key, dict[str, Any]]) -> None:
    known = {*every_key()}
    kept = [row for key, row in rows.items() if key in known]
    LINES.write_text("".join(f"{json.dumps(row)}\n" for row in kept), encoding="utf-8")


def text_of(row: dict[str, Any] | None, notes: dict[str, int]) -> str:
    """A cell of the table; messages are numbered, and stand below."""
    if row is None:
        return ""
    if row["result"] == "holds":
        return f"holds {row['residual']:.0e}"
    why = re.sub(rf"{tempfile.gettempdir()}/[\w/]+", "FOLDER", " ".join(row["why"].split()))
    why = why if len(why) <= LONGEST else f"{why[:LONGEST]}…"
    number = notes.setdefault(f"{row['result']}: {why}", len(notes) + 1)
    shown = f"**{row['result']}**" if row["result"] in loading.FAULTS else row["result"]
    return f"{shown} ({number})"


def write_page(rows: dict[Key, dict[str, Any]]) -> None:
    """The tables, one per kind of edit, and what the messages say."""
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows.values()))
    counts: dict[str, int] = {}
    for row in rows.values():
        counts[row["result"]] = counts.get(row["result"], 0) + 1
    total = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
    silent = counts.get("SILENT", 0)
    known = {*every_key()}
    parts = [
        f"`python benchmarks/loading.py`, CPU, float32, seed 0, diffusers {diffusers.__version__}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}, commit {commits}.",
        f"{len(rows)} of {len(known)} cells are tried, **{silent} of them silent**: {total}.",
    ]
    notes: dict[str, int] = {}
    for layers in loading.LAYERS:
        head = f"| {layers} | {' | '.join(loading.ARCHITECTURES)} |"
        lines = [head, "|---" * (len(loading.ARCHITECTURES) + 1) + "|"]
        for way in loading.WAYS:
            keys = [(a, layers, way.title) for a in loading.ARCHITECTURES]
            found = [text_of(rows.get(k), notes) if k in known else "-" for k in keys]
            lines.append(f"| {way.title} | {' | '.join(found)} |")
        parts.append("\n".join(lines))
    told = [f"{number}. {note}" for note, number in notes.items()]
    parts.append("\n".join(told).replace("<", "&lt;"))
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    table = "\n\n".join(parts)
    PAGE.write_text(f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> None:
    warnings.simplefilter("ignore")
    words = [word for word in sys.argv[1:] if word != "--page"]
    rows = read_lines()
    again = [key for key in every_key() if any(w in " | ".join(key) for w in words)]
    wanted = again if words else [key for key in every_key() if key not in rows]
    at_hand = commit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        for key in tqdm([] if "--page" in sys.argv else wanted, mininterval=10):
            row = {**asdict(try_in_time(key)), "commit": at_hand}
            with LINES.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(row)}\n")
    finally:
        rows = read_lines()  # another process may have added to them
        write_lines(rows)
        write_page(rows)


if __name__ == "__main__":
    main()
