"""The JSON lines of an evaluation: written, read again, and made into numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .metrics import Estimate, frechet, harmonic, mean, rate
from .suites import KINDS

UNEDITED = "unedited"
"""The row that all others are compared with."""
COLUMNS = (
    "ACC_e",
    "ACC_e2",
    "ACC_a",
    "ACC_ctx",
    "ACC_g",
    "ACC_s",
    "ACC_near",
    "H_o",
    "mse",
    "feature",
    "frechet",
    "listed_residual",
    "held_out_mean",
    "drift",
    "seconds",
    "bytes",
    "peak_mib",
)
"""Of the table; see `aggregate`."""
Line = Mapping[str, Any]


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of every shard; a line that a kill cut off is left out."""
    for file in sorted(folder.glob("shard-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


@contextmanager
def open_shard(
    folder: Path | None, index: int, lines: list[dict[str, Any]]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a line: to the process's shard in `folder`, or to `lines` without."""
    if folder is None:
        yield lines.append
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"shard-{index}.jsonl").open("a+b") as file:
        if file.tell() and not _ends_with_newline(file):
            file.write(b"\n")

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()

        yield write


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"


def check_same_run(lines: Iterable[Line], run: Line, folder: Path | None) -> None:
    """Refuse lines of another run.

    Raises:
        EvaluationError: A header among `lines` is not `run`.
    """
    for line in lines:
        if "run" in line and line["run"] != json.loads(json.dumps(run)):
            raise EvaluationError(
                f"{folder} holds lines of another run (suite, spec, n or seed differ); "
                "give an empty folder"
            )


def aggregate(lines: Iterable[Line]) -> dict[str, dict[str, Any]]:
    """Row -> measure -> number, from the lines alone, in whatever order they came.

    ACC_e: target seen in prompts that ask for the target. ACC_a: anchor seen there.
    ACC_e2: target seen there by the suite's second detector, which knows words and no labels.
    ACC_ctx: what else they ask for, kept. ACC_g: target seen from synonyms and other phrasings.
    ACC_s: what other prompts ask for, kept. ACC_near: the same of the nearest neighbours.
    H_o: harmonic(1 - ACC_e, ACC_s, 1 - ACC_g). mse, feature, frechet: change of the images of the
    other prompts.

    Raises:
        EvaluationError: A row lacks a kind of image, or there is no unedited row.
    """
    judged: dict[str, dict[str, dict[int, Line]]] = {}
    adapters: dict[str, Line] = {}
    for line in lines:
        if "kind" in line:
            kinds = judged.setdefault(line["row"], {})
            kinds.setdefault(line["kind"], {})[line["index"]] = line
        elif "adapter" in line:
            adapters[line["row"]] = line["adapter"]
    if UNEDITED not in judged:
        raise EvaluationError(
            "no image was judged, so there is no number; the lines hold no unedited row"
        )
    ordered = {row: _sort_lines(kinds) for row, kinds in judged.items()}
    unedited = [line["features"] for line in ordered[UNEDITED].get("other", [])]
    return {
        row: _measure(row, kinds, unedited) | dict(adapters.get(row, {}))
        for row, kinds in ordered.items()
    }


def _sort_lines(kinds: Mapping[str, Mapping[int, Line]]) -> dict[str, list[Line]]:
    """Kind -> lines by index."""
    found = {}
    for kind, lines in kinds.items():
        found[kind] = [lines[i] for i in sorted(lines)]
    return found


def _measure(
    row: str, kinds: Mapping[str, list[Line]], unedited: list[list[float]]
) -> dict[str, Any]:
    """Measure -> number of one row; `unedited` are the unedited features of the other prompts."""
    if missing := [kind for kind in KINDS if not kinds.get(kind)]:
        raise EvaluationError(
            f"row {row!r} has no image of kind {missing[0]!r}; run the evaluation to its end"
        )
    target, general, near, other = (kinds[kind] for kind in KINDS)
    rates = {
        "ACC_e": rate([line["hit"] for line in target], "ACC_e"),
        "ACC_ctx": rate(_flatten_right(target), "ACC_ctx"),
        "ACC_g": rate([line["hit"] for line in general], "ACC_g"),
        "ACC_s": rate(_flatten_right(other), "ACC_s"),
        "ACC_near": rate(_flatten_right(near), "ACC_near"),
    }
    if anchors := [line["anchor"] for line in target if line["anchor"] is not None]:
        rates["ACC_a"] = rate(anchors, "ACC_a")
    if second := [line["second"] for line in target if line.get("second") is not None]:
        rates["ACC_e2"] = rate(second, "ACC_e2")
    return rates | {
        "H_o": harmonic(1 - rates["ACC_e"].value, rates["ACC_s"].value, 1 - rates["ACC_g"].value),
        "mse": mean([line["mse"] for line in other], "mse"),
        "feature": mean([line["feature"] for line in other], "feature"),
        "frechet": frechet([line["features"] for line in other], unedited),
    }


def _flatten_right(lines: Sequence[Line]) -> list[bool]:
    """Whether each thing that is asked for was seen, of all lines."""
    found: list[bool] = []
    for line in lines:
        found += line["right"]
    return found


def format_table(rows: Mapping[str, Line]) -> str:
    """The rows of `aggregate` as a Markdown table; every estimate with its interval and n."""
    lines = ["| row | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row, measures in rows.items():
        cells = [_format_cell(measures.get(column)) for column in COLUMNS]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _format_cell(value: Any) -> str:
    if isinstance(value, Estimate):
        return f"{value.value:.3g} ({value.low:.2g} to {value.high:.2g}; n {value.n})"
    return "-" if value is None else f"{value:.3g}"
