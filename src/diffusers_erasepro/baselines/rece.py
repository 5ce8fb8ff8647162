"""Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024, arXiv 2407.12383)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..config.spec import Concept, ErasureSpec
from ..linalg.low_rank import LowRank
from .closed_form import ClosedForm, Problem, edit_cross_attention, multiply_weights, solve_ridge
from .uce import UCE


def rece(pipe: Any, spec: ErasureSpec | Concept, **settings: Any) -> ErasureAdapter:
    """RECE: after UCE, the states that would revive the target are found and erased too, in rounds.

    Args:
        pipe: As for `erase`; it stays as it is, bit for bit.
        spec: What to erase; synonyms count as targets.
        templates: As for `uce`.
        preserve: As for `uce`; kept texts count at all positions, the empty one is among them.
        rounds: How often. Its authors: 1 for styles and objects, 3 for nudity.
        regulariser: Of the search. Its authors: 1e-3 for styles and hard objects, 0.1 for nudity
            and easy objects.
        erase_scale: Weight of the targets. Default 1, as in the official code.
        preserve_scale: Weight of what is kept. Default 0.1, as there.
        lamb: Weight of the change itself. Default 0.1, as there.
        start: Settings of the UCE edit it starts from.

    Returns:
        An adapter without keys: beside others it is added, not solved again.

    Raises:
        ConceptSpecError: A setting is not known or out of range.
        UnknownFamilyError: The pipeline has several text encoders.
    """
    return edit_cross_attention(RECE.of(settings), pipe, spec)


@dataclass(frozen=True)
class RECE(ClosedForm):
    """The settings of RECE and its rounds of closed forms."""

    rounds: int = 1
    regulariser: float = 1e-3
    erase_scale: float = 1.0
    preserve_scale: float = 0.1
    lamb: float = 0.1
    start: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the UCE edit it starts from, where they are not UCE's own."""
    name: ClassVar[str] = "rece"

    def edits(self, problem: Problem) -> dict[str, LowRank]:
        shared = {"templates": self.templates, "preserve": self.preserve}
        start = UCE.of(shared | dict(self.start))
        identity = torch.eye(len(problem.gram), dtype=torch.float64)
        M = identity + start.change_of_states(problem).dense()
        X = problem.all_states(problem.targets)
        Y = problem.all_states(problem.anchors)
        K = problem.all_states(("", *problem.captions))
        for _ in range(self.rounds):
            revived = inverse_map(problem.gram, M, self.regulariser) @ X
            F = solve_ridge(revived, Y, K, self.erase_scale, self.preserve_scale, self.lamb)
            M = M + M @ F.dense()
        return multiply_weights(problem.weights, LowRank(M - identity, identity))


def inverse_map(gram: Tensor, M: Tensor, regulariser: float) -> Tensor:
    """The map Z of states that makes edited linears W M answer as the unedited ones did, `(d, d)`.

    argmin over Z of  sum |W M Z - W|^2 + r |Z|^2  =  (M' G M + r I)^-1 M' G,  the paper's
    equation 7.

    Args:
        gram: G `(d, d)`, the sum of W' W.
        M: `(d, d)` the edit: every linear is W M.
        regulariser: r. Larger keeps the states closer to 0.
    """
    ridge = regulariser * torch.eye(len(M), dtype=M.dtype)
    return torch.linalg.solve(M.T @ gram @ M + ridge, M.T @ gram)
