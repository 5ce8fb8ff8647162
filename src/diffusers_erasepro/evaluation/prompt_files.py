"""Prompts of an evaluation: a text file with one a line, a CSV table, or the adapters' own."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.spec import Concept
from ..config.text_files import read_captions, read_text_file
from ..config.words import fill
from ..errors import EvaluationError
from ..prompts.pairs import spread

TABLE = ".csv"
SEED_COLUMNS = ("evaluation_seed", "sd_seed", "seed")
"""Where published prompt lists keep the seed of each prompt; the first that is there counts."""
GROUP_COLUMNS = ("type", "group")
SEEDS = 2**31
"""Seeds are taken modulo this."""


@dataclass(frozen=True)
class PromptList:
    """Prompts, and what a table says of each."""

    texts: tuple[str, ...]
    seeds: tuple[int, ...] | None = None
    groups: tuple[str, ...] | None = None
    """A published list's name for what each prompt is there for, such as "erased"."""

    def spread(self, most: int | None) -> PromptList:
        """At most so many, evenly spread."""
        if most is None or most >= len(self.texts):
            return self
        at = spread(range(len(self.texts)), most)
        return PromptList(
            tuple(self.texts[i] for i in at),
            None if self.seeds is None else tuple(self.seeds[i] for i in at),
            None if self.groups is None else tuple(self.groups[i] for i in at),
        )


def read_prompt_file(path: Path) -> PromptList:
    """The prompts of a UTF-8 file: one a line, or the column `prompt` of a `.csv`.

    Raises:
        ConceptSpecError: The file is not there, is not UTF-8, or holds no line.
        EvaluationError: A table without prompts.
    """
    if path.suffix.lower() != TABLE:
        return PromptList(read_captions(path))
    rows = list(csv.DictReader(io.StringIO(read_text_file(path))))
    if not rows or "prompt" not in rows[0]:
        columns = ", ".join(map(repr, rows[0])) if rows else "no row"
        raise EvaluationError(f"{path} has no column 'prompt' with a prompt (it has {columns})")
    empty = [at for at, row in enumerate(rows) if not (row["prompt"] or "").strip()]
    if empty:
        raise EvaluationError(f"{path}: row {empty[0] + 1} has no prompt; write one, or delete it")
    seeds = _column(rows, SEED_COLUMNS)
    try:
        numbers = None if seeds is None else tuple(int(float(seed)) % SEEDS for seed in seeds)
    except ValueError as error:
        raise EvaluationError(f"{path}: a seed is no number: {error}") from error
    groups = _column(rows, GROUP_COLUMNS)
    return PromptList(
        tuple(" ".join(row["prompt"].split()) for row in rows),
        numbers,
        None if groups is None else tuple(groups),
    )


def _column(rows: Sequence[dict[str, str]], names: Sequence[str]) -> list[str] | None:
    name = next((name for name in names if name in rows[0]), None)
    return None if name is None else [row[name] or "" for row in rows]


def hash_prompts(texts: Sequence[str]) -> str:
    """sha256 of the prompts, one a line, white space made plain.

    Copies of a published list differ in columns and line ends; their prompts do not.
    """
    plain = [" ".join(text.split()) for text in texts]
    return hashlib.sha256("\n".join(plain).encode()).hexdigest()


def make_prompts(concepts: Sequence[Concept], captions: Sequence[str], n: int) -> PromptList:
    """Prompts that the adapters' specs bring: phrasings never solved for, and captions to keep.

    Args:
        concepts: Half of the prompts name them, in turn.
        captions: The other half is spread over these.
        n: How many prompts.
    """
    named: list[str] = []
    each = max(1, -(-n // (2 * len(concepts))))
    for concept in concepts:
        phrases = spread(concept.held_out or concept.kind.exact, each)
        for turn, phrase in enumerate(phrases):
            named.append(fill(phrase, concept.words[turn % len(concept.words)])[0])
    others = spread([text for text in captions if len(text) < 120], max(1, n // 2))
    return PromptList(tuple(dict.fromkeys([*named, *others])))
