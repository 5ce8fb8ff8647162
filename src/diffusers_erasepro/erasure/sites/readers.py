"""The denoiser's linears that read the text states: what the encoder leaves open, they close."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...config.plan import READERS
from ...errors import ConceptSpecError
from ...families.pipelines import family_of, get_component, reader_paths
from ...linalg.low_rank import LowRank
from ...modules.storage import effective_weight
from ...prompts.alignment import Rows
from ..residuals import anchor_states, target_states
from .blocks import Solver, covariance_solver
from .planning import Planning
from .protocol import STATES, ByKind, Edits


@dataclass(frozen=True)
class ReaderSite:
    """The readers of one sequence have the same input, so one map B A serves all: D = (W B) A."""

    component: str
    weights: Mapping[str, Tensor]
    """By reader, W `(d_out, d)` as it is in force."""
    positions: Mapping[str, Rows]
    solver: Solver
    unedited: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Per kind, further states and their gaps, `(k, d)` each: with `robust`, those of the targets
    in the unedited encoder, as one hands them in who goes around its edit."""
    output: str = STATES
    inputs: tuple[str, ...] = (STATES,)

    def solve(self, inputs: Mapping[str, ByKind], gap: ByKind) -> Edits:
        """One map of the states, seen through every reader."""
        keys = dict(inputs[STATES])
        gaps = dict(gap)
        for kind, (states, lacking) in self.unedited.items():
            keys[kind] = torch.cat([keys[kind], states])
            gaps[kind] = torch.cat([gaps[kind], lacking])
        solution = self.solver(keys, gaps)
        shared = solution.factors
        factors = {
            path: LowRank(weight.double() @ shared.B, shared.A)
            for path, weight in self.weights.items()
        }
        return Edits(factors, {STATES: keys["exact"].T}, solution)

    def apply(
        self, output: Tensor, inputs: Mapping[str, Tensor], edits: Edits
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The states stay; it is their readers that change."""
        return output, {}


def reader_sites(planning: Planning) -> list[ReaderSite]:
    """The readers, where the plan names them and this encoder is the one that they read.

    Raises:
        ConceptSpecError: The pipeline has no linear that reads one text encoder and nothing else,
            or a concept has no edit but those, and this encoder is read beside that one.
    """
    if not (READERS in planning.plan.layers or planning.options.robust):
        return []
    family = family_of(planning.pipe)
    if family.read_whole is None:
        asked = "robust=True" if planning.options.robust else f"layers {READERS!r}"
        raise ConceptSpecError(
            f"{asked}: no linear of {type(planning.pipe).__name__}'s denoiser reads the states of "
            "one text encoder and nothing else; edit encoder blocks, such as layers=(0, -1), or "
            "layers='embedding', rows of tokens that only the name uses"
        )
    if not family.reads_whole(planning.path.use):
        _refuse_open(planning)
        return []
    denoiser = get_component(planning.pipe, family.denoiser)
    weights = {path: effective_weight(denoiser, path) for path in reader_paths(denoiser, family)}
    rows = planning.rows
    return [
        ReaderSite(
            family.denoiser,
            weights,
            rows,
            covariance_solver(planning, STATES, rows),
            _states_without_edits(planning) if planning.options.robust else {},
        )
    ]


def _refuse_open(planning: Planning) -> None:
    """Where the readers do not read an encoder, something in it must close the gap.

    Raises:
        ConceptSpecError: A concept names the readers alone.
    """
    for concept in planning.spec.concepts:
        if {*planning.plan.recipe_of(concept).layers} == {READERS}:
            raise ConceptSpecError(
                f"layers {READERS!r}: {type(planning.pipe).__name__} also reads "
                f"{planning.path.use.encoder}, past the denoiser's linears that would be edited, "
                f"so {concept.target!r} would stay there; edit encoder blocks as well, such as "
                f"layers=(0, -1, {READERS!r})"
            )


def _states_without_edits(planning: Planning) -> dict[str, tuple[Tensor, Tensor]]:
    """Per kind, what the unedited encoder gives of the targets, and what that lacks."""
    readings = planning.path.use.readings
    whole = next(i for i, reading in enumerate(readings) if not reading.pooled)
    found = {}
    for kind, rows in planning.rows.items():
        states = target_states(planning.encoder, rows, readings)[whole].cpu()
        goal = anchor_states(planning.encoder, rows, readings)[whole].cpu()
        found[kind] = states, goal - states
    return found
