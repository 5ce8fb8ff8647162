"""The table of docs/pipelines.md: an erasure on a tiny pipeline of every class that takes text.

`python benchmarks/pipelines.py`, or with names of classes to try those again; `2/4` is the second
quarter of all, and several parts may run at once.
"""

import inspect
import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import filelock
import torch
import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import holding  # noqa: E402
import siblings  # noqa: E402
from diffusers_erasepro.errors import UnknownFamilyError  # noqa: E402
from diffusers_erasepro.families.pipelines import PIPELINES  # noqa: E402
from diffusers_erasepro.families.types import find_record  # noqa: E402

PAGE = ROOT / "docs" / "pipelines.md"
LINES = Path(__file__).with_suffix(".jsonl")
START = "<!-- table: benchmarks/pipelines.py -->"
END = "<!-- end of table -->"
SECONDS = 180
"""What one class may take."""
HEADER = (
    "class",
    "text encoders",
    "record",
    "layers",
    "holds",
    "reads",
    "residual",
    "why not, or what goes past the edit",
    "built without",
)


class TooLongError(Exception):
    """One class took longer than `SECONDS`."""


def stop(*_: object) -> None:
    raise TooLongError


def try_in_time(name: str) -> holding.Outcome:
    """`holding.try_class`, ended after `SECONDS`."""
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        return holding.try_class(name)
    except TooLongError:
        return holding.Outcome(name, False, reason=f"took longer than {SECONDS} s")
    finally:
        signal.alarm(0)


def encoders_of(name: str) -> str:
    """The classes of the text encoders that a constructor asks for."""
    found = []
    for part, parameter in inspect.signature(getattr(diffusers, name).__init__).parameters.items():
        if re.fullmatch(r"(prior_)?text_encoder(_\d)?", part):
            found.append(siblings.annotated(parameter))
    return ", ".join(found)


def has_record(name: str) -> bool:
    """Whether a shipped record names the class, or a base of it."""
    cls = getattr(diffusers, name)
    bare: Any = cls.__new__(cls)
    try:
        find_record(bare, PIPELINES, "pipelines", "pipeline family")
    except UnknownFamilyError:
        return False
    return True


def row_of(outcome: holding.Outcome) -> str:
    modular = outcome.name.endswith("ModularPipeline")
    cells = (
        outcome.name,
        "" if modular else encoders_of(outcome.name),
        "yes" if not modular and has_record(outcome.name) else "",
        outcome.layers,
        "yes" if outcome.holds else "**no**",
        outcome.reads,
        f"{outcome.residual:.1e}" if outcome.holds else "",
        outcome.reason,
        outcome.left_out,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def commit_at_hand() -> str:
    run = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(run, cwd=ROOT, capture_output=True, encoding="utf-8").stdout.strip()


def read_lines() -> dict[str, dict[str, Any]]:
    """What was found, by class."""
    if not LINES.is_file():
        return {}
    rows = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows}


def write_lines(outcomes: list[holding.Outcome]) -> dict[str, dict[str, Any]]:
    """Keep what was found of some classes, beside what was found of others before."""
    rows = read_lines()
    commit = commit_at_hand()
    for outcome in outcomes:
        rows[outcome.name] = {**asdict(outcome), "commit": commit}
    kept = {name: rows[name] for name in every_class() if name in rows}
    lines = "".join(f"{json.dumps(row)}\n" for row in kept.values())
    LINES.write_text(lines, encoding="utf-8")
    return kept


def every_class() -> list[str]:
    return [*siblings.text_pipelines(), *siblings.modular_pipelines()]


def names_asked(arguments: list[str]) -> list[str]:
    """The classes of a command's arguments: names, or parts such as "2/4"."""
    names: list[str] = []
    for argument in arguments or ["1/1"]:
        part, slash, count = argument.partition("/")
        names += every_class()[int(part) - 1 :: int(count)] if slash else [argument]
    return names


def write_page(rows: dict[str, dict[str, Any]]) -> None:
    """Both tables, and how many hold."""
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows.values()))
    outcomes = []
    for row in rows.values():
        outcomes.append(holding.Outcome(**{k: v for k, v in row.items() if k != "commit"}))
    note = (
        f"`python benchmarks/pipelines.py`, CPU, float32, seed 0, diffusers "
        f"{diffusers.__version__}, transformers {transformers.__version__}, torch "
        f"{torch.__version__}, commit {commits}."
    )
    parts = [note]
    for modular, title in ((False, "pipelines"), (True, "modular pipelines")):
        some = [one for one in outcomes if one.name.endswith("ModularPipeline") == modular]
        holds = sum(outcome.holds for outcome in some)
        head = f"| {' | '.join(HEADER)} |"
        lines = [head, "|---" * len(HEADER) + "|", *map(row_of, some)]
        parts += [f"Of {len(some)} {title} {holds} hold.", "\n".join(lines)]
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    table = "\n\n".join(parts)
    PAGE.write_text(f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    found = []
    for chosen in names_asked(sys.argv[1:]):
        found.append(try_in_time(chosen))
        print(row_of(found[-1]), flush=True)
        with filelock.FileLock(LINES.with_suffix(".lock")):
            write_page(write_lines(found[-1:]))
    print(sum(outcome.holds for outcome in found), "of", len(found))
