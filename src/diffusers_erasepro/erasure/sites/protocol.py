"""What the walk asks of a kind of edit, and what a kind of edit answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...linalg.constrained import Solution
from ...linalg.low_rank import LowRank
from ...prompts.alignment import Rows

STATES = "states"
"""Stands for what leaves the encoder, where a module's name stands for what passes through it."""
INPUT = ":input"
"""Behind a module's name: not what it returns, but what it receives. In post-norm blocks an edit
reaches the input of the last norm."""
ByKind = Mapping[str, Tensor]
"""Per kind of prompts, "exact" or "soft", `(k, d)` at the positions that a site answers for."""


@dataclass(frozen=True)
class Vectors:
    """What an edit writes, one vector for each thing that it answers to alone."""

    linear: str
    factors: LowRank
    """`(d_out, n)` the vectors, and `(n, d_in)` what each answers to."""
    words: tuple[str, ...]
    """Whose each is."""


@dataclass(frozen=True)
class Edits:
    """Low-rank edits of named linears, and what they have to say."""

    factors: Mapping[str, LowRank]
    """By the linear's name in its component."""
    keys: Mapping[str, Tensor]
    """By the linear's name, or `STATES`: `(d_in, n)` what it receives at the exact positions."""
    solution: Solution | None = None
    """Of the constrained solve, where one was made."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    vectors: Vectors | None = None
    """A share of `factors` that can be solved for the final states as well."""


class EditSite(Protocol):
    """One place of the encoder, or right behind it, where an edit closes the gap to the anchor."""

    @property
    def component(self) -> str:
        """The pipeline component whose linears are edited."""

    @property
    def output(self) -> str:
        """The module whose output must become the anchor's, or whose input (`INPUT`), or
        `STATES`."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modules whose inputs it needs to see, or `STATES`."""

    @property
    def positions(self) -> Mapping[str, Rows]:
        """Per kind of prompts, "exact" and "soft", which positions it answers for."""

    def solve(self, inputs: Mapping[str, ByKind], gap: ByKind) -> Edits:
        """The edits that close `gap`.

        Args:
            inputs: By module, what it receives of the targets.
            gap: What the output lacks of the anchor's.

        Raises:
            IllPosedError: No acceptable edit exists.
        """

    def apply(
        self, output: Tensor, inputs: Mapping[str, Tensor], edits: Edits
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The output as it will be, and the inputs that change with it, so that the walk goes on.

        Args:
            output: `(n, length, d)` of the target rows, before this edit.
            inputs: By module, `(n, length, d_in)` of the target rows.
            edits: What `solve` returned.
        """


def inputs_of(sites: Sequence[EditSite]) -> list[str]:
    """Every module whose inputs some site needs to see, once."""
    found: dict[str, None] = {}
    for site in sites:
        found |= dict.fromkeys(site.inputs)
    return list(found)
