"""The table of docs/pipelines.md: an erasure on a tiny pipeline of every class that takes text.

`python benchmarks/pipelines.py`, or with names of classes to see those alone.
"""

import inspect
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
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
START = "<!-- table: benchmarks/pipelines.py -->"
END = "<!-- end of table -->"
SECONDS = 180
"""What one class may take."""
HEADER = (
    "class",
    "text encoders",
    "record",
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
    cells = (
        outcome.name,
        encoders_of(outcome.name),
        "yes" if has_record(outcome.name) else "",
        "yes" if outcome.holds else "**no**",
        outcome.reads,
        f"{outcome.residual:.1e}" if outcome.holds else "",
        outcome.reason,
        outcome.left_out,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_page(outcomes: list[holding.Outcome]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8"
    ).stdout.strip()
    holds = sum(outcome.holds for outcome in outcomes)
    note = (
        f"`python benchmarks/pipelines.py`, CPU, float32, seed 0, diffusers "
        f"{diffusers.__version__}, transformers {transformers.__version__}, torch "
        f"{torch.__version__}, commit {commit}: of {len(outcomes)} classes {holds} hold."
    )
    rows = [row_of(outcome) for outcome in outcomes]
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|", *rows]
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    table = "\n".join(lines)
    page = f"{before}{START}\n{note}\n\n{table}\n{END}{rest.split(END)[1]}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    chosen = sys.argv[1:] or [*siblings.text_pipelines()]
    found = []
    for chosen_name in chosen:
        found.append(try_in_time(chosen_name))
        print(row_of(found[-1]), flush=True)
    if not sys.argv[1:]:
        write_page(found)
    print(sum(outcome.holds for outcome in found), "of", len(found))
