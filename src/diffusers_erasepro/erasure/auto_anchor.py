"""`anchor="auto"`: the broader concept whose text features are nearest to the target's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config.mentions import Mentions
from ..config.plan import ALIGNMENTS, BLOCKS, Alignment
from ..config.spec import AUTO_ANCHOR, Concept, ErasureSpec
from ..errors import ConceptSpecError
from ..prompts.alignment import rows_of
from ..prompts.pairs import Pair, Prompt
from ..prompts.tokens import TextPath, text_paths
from .float32 import in_float32
from .residuals import anchor_states, relative, target_states


def with_anchors(
    pipe: Any,
    spec: ErasureSpec,
    alignment: str | Mapping[str, str] | None,
    clip_skip: int = 0,
) -> ErasureSpec:
    """`spec` with every anchor "auto" replaced by the candidate nearest to the target.

    By text features. Candidates are the concept's own, or its template set's broader concepts,
    less those that name a target.

    Raises:
        ConceptSpecError: No candidate is left.
    """
    if not any(c.anchor == AUTO_ANCHOR for c in spec.concepts):
        return spec
    taken: list[str] = []
    for concept in spec.concepts:
        taken += concept.words
    concepts = []
    for concept in spec.concepts:
        if concept.anchor == AUTO_ANCHOR:
            given = alignment.get(concept.target) if isinstance(alignment, Mapping) else alignment
            positions = ALIGNMENTS[given or BLOCKS.alignment]
            paths = text_paths(pipe, clip_skip)
            nearest = _nearest(paths, concept, taken, positions)
            concept = replace(concept, anchor=nearest, anchors=())
        concepts.append(concept)
    return replace(spec, concepts=tuple(concepts))


def _nearest(
    paths: Sequence[TextPath], concept: Concept, taken: Sequence[str], alignment: Alignment
) -> str:
    """The candidate whose states are nearest to the target's, over all text encoders."""
    named = Mentions(taken)
    candidates = [anchor for anchor in concept.candidates if anchor not in named]
    if not candidates:
        raise ConceptSpecError(
            f"no anchor is left for {concept.target!r}: every candidate names a target; give "
            "`anchors`"
        )
    distances = [_distances(path, concept, candidates, alignment) for path in paths]
    return candidates[int(torch.stack(distances).sum(0).argmin())]


def _distances(
    path: TextPath, concept: Concept, candidates: Sequence[str], alignment: Alignment
) -> Tensor:
    """`(n,)` mean relative distance of the target's states to each candidate's."""
    template = concept.exact[0]
    target = Prompt.of(template, concept.target)
    found = []
    for candidate in candidates:
        rows = rows_of([Pair(target, Prompt.of(template, candidate))], path, alignment)
        with in_float32(path.encoder) as encoder, torch.no_grad():
            have = target_states(encoder, rows, path.use.readings)
            goal = anchor_states(encoder, rows, path.use.readings)
        apart = [relative(*states) for states in zip(have, goal, strict=True)]
        found.append(torch.cat(apart).mean())
    return torch.stack(found)
