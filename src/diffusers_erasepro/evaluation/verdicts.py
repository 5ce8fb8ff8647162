"""Numbers in words: good, look at the pictures, bad."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ..adapters.report import HALF_LEFT


class Verdict(StrEnum):
    """What a number means for whoever does not know the number."""

    good = "good"
    look = "look"
    bad = "bad"


@dataclass(frozen=True)
class Threshold:
    """Up to where a number is good, and up to where one should look at the pictures."""

    good: float
    look: float

    def judge(self, value: float) -> Verdict:
        """The verdict on a number that is better the smaller it is; NaN is bad."""
        if value <= self.good:
            return Verdict.good
        return Verdict.look if value <= self.look else Verdict.bad

    def __str__(self) -> str:
        return f"good up to {self.good:g}, look up to {self.look:g}"


LEFT = Threshold(0.25, HALF_LEFT)
"""Share of the gap between a prompt and its anchor's that is left in the states. `layers="auto"`
takes no edit that leaves more than a quarter of a target, by its noise predictions."""
MOVED = Threshold(0.05, 0.1)
"""Mean relative change of the states of a prompt that names nothing erased; from a tenth on, a
caption counts as hit in an adapter's report too."""
SEEN = Threshold(0.0, 0.1)
"""Share of pictures that still show the concept, of those that did before."""


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of some; good of none."""
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.good)
