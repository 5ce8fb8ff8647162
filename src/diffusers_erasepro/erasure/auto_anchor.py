"""What to leave in a target's place where the user does not say: the nearest broader concept by text features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config.spec import AUTO_ANCHOR, Concept, ErasureSpec, mentions
from ..config.template_set import BLOCKS
from ..errors import ConceptSpecError
from ..prompts.pairs import ALIGNMENTS, Pair, Prompt, TextPath, rows_of, text_paths
from .layerwise import working
from .residuals import anchor_states, relative, target_states


def with_anchors(pipe: Any, spec: ErasureSpec, alignment: str | None) -> ErasureSpec:
    """`spec` with every anchor "auto" replaced by the candidate whose text features are nearest to the target's.

    Candidates are the concept's own, or its template set's broader concepts, less those that name a target.

    Raises:
        ConceptSpecError: No candidate is left.
    """
    if not any(c.anchor == AUTO_ANCHOR for c in spec.concepts):
        return spec
    taken = [w for c in spec.concepts for w in c.words]
    alignment = alignment or BLOCKS.alignment
    return replace(spec, concepts=tuple(_settled(pipe, c, taken, alignment) for c in spec.concepts))


def _settled(pipe: Any, concept: Concept, taken: Sequence[str], alignment: str) -> Concept:
    if concept.anchor != AUTO_ANCHOR:
        return concept
    candidates = [a for a in concept.candidates if not any(mentions(a, w) for w in taken)]
    if not candidates:
        raise ConceptSpecError(
            f"no anchor is left for {concept.target!r}: every candidate names a target; give `anchors`"
        )
    far = sum(_distances(path, concept, candidates, alignment) for path in text_paths(pipe))
    assert isinstance(far, Tensor)
    return replace(concept, anchor=candidates[int(far.argmin())], anchors=())


def _distances(
    path: TextPath, concept: Concept, candidates: Sequence[str], alignment: str
) -> Tensor:
    """`(n,)` mean relative distance of the target's states to each candidate's, at the aligned positions."""
    template = concept.exact[0]
    pairs = [
        Pair(Prompt.of(template, concept.target), Prompt.of(template, candidate))
        for candidate in candidates
    ]
    apart = [rows_of([pair], path, ALIGNMENTS[alignment]) for pair in pairs]
    with working(path.encoder) as encoder, torch.no_grad():
        return torch.stack(
            [
                torch.cat(
                    [
                        relative(have, goal)
                        for have, goal in zip(
                            target_states(encoder, rows, path.use.readings),
                            anchor_states(encoder, rows, path.use.readings),
                            strict=True,
                        )
                    ]
                ).mean()
                for rows in apart
            ]
        )
