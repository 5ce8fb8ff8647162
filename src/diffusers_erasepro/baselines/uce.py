"""Unified Concept Editing (Gandikota et al., WACV 2024, arXiv 2308.14761)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..adapters.adapter import ErasureAdapter
from ..config.spec import Concept, ErasureSpec
from ..linalg.low_rank import LowRank
from .closed_form import ClosedForm, Problem, edit_cross_attention, multiply_weights, solve_ridge


def uce(pipe: Any, spec: ErasureSpec | Concept, **settings: Any) -> ErasureAdapter:
    """UCE: by ridge regression, every K and V answers the target's last token as its anchor's.

    Args:
        pipe: As for `erase`; it stays as it is, bit for bit.
        spec: What to erase; synonyms count as targets.
        templates: Texts with one `{}`. Default the bare words, as in the official code, whose
            `expand_prompts` adds five.
        preserve: Texts to keep at their last token. Default the spec's preserve captions.
        erase_scale: Weight of the targets. Default 1, as in the official code.
        preserve_scale: Weight of what is kept. Default 1, as there.
        lamb: Weight of the change itself. Default 0.5, as there.

    Returns:
        An adapter without keys: beside others it is added, not solved again.

    Raises:
        ConceptSpecError: A setting is not known or out of range.
        UnknownFamilyError: The pipeline has several text encoders.
    """
    return edit_cross_attention(UCE.of(settings), pipe, spec)


@dataclass(frozen=True)
class UCE(ClosedForm):
    """The settings of UCE and its closed form, W* = W (I + F) of `solve_ridge`."""

    erase_scale: float = 1.0
    preserve_scale: float = 1.0
    lamb: float = 0.5
    name: ClassVar[str] = "uce"

    def change_of_states(self, problem: Problem) -> LowRank:
        """F `(d, d)`, which all linears share."""
        X = problem.last_states(problem.targets)
        Y = problem.last_states(problem.anchors)
        K = problem.last_states(problem.captions)
        return solve_ridge(X, Y, K, self.erase_scale, self.preserve_scale, self.lamb)

    def edits(self, problem: Problem) -> dict[str, LowRank]:
        return multiply_weights(problem.weights, self.change_of_states(problem))
