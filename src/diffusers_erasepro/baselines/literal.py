"""The paper's formula read literally: every linear of the text encoder, then every K and V."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from ..adapters.adapter import ErasureAdapter
from ..config.options import AUTO, Options, OtherMethod
from ..config.plan import READERS
from ..config.spec import Concept, ErasureSpec
from ..erasure.auto_anchor import with_anchors
from ..erasure.erase import erase_as_planned
from ..erasure.request import below_loras, check_clip_skip
from ..erasure.sites.blocks import planned_blocks, site_at
from ..erasure.sites.plan_edits import with_metrics
from ..erasure.sites.planning import Planning
from ..erasure.sites.protocol import EditSite
from ..erasure.sites.readers import reader_sites
from ..errors import ConceptSpecError
from ..families.encoders import blocks_of, blocks_path, encoder_family_of
from ..patching.weights import unedited
from ..prompts.tokens import text_paths

NAME = "literal"


def literal(
    pipe: Any, spec: ErasureSpec | Concept, *, measure: bool = True, **options: Any
) -> ErasureAdapter:
    """Every linear edited on its own, with the identity for a metric and no soft prompt.

    Args:
        pipe: As for `erase`.
        spec: As for `erase`.
        measure: As for `erase`.
        options: Options of `erase` that shall differ: `metric`, `layers`, `alignment`, ...

    Raises:
        ConceptSpecError: As from `erase`; `layers="auto"` is not tried here.
        IllPosedError: As from `erase`.
    """
    began = time.perf_counter()
    spec = ErasureSpec((spec,)) if isinstance(spec, Concept) else spec
    encoder = text_paths(pipe)[0].encoder
    formula: dict[str, Any] = {
        "layers": (*range(len(blocks_of(encoder))), READERS),
        "metric": "identity",
        "alignment": "last_subject",
        "soft_weight": 0.0,
    }
    request = Options.of(formula | options)
    if request.layers == AUTO:
        raise ConceptSpecError("layers='auto' chooses for `erase`; name the blocks for `literal`")
    plan = request.resolve(spec.concepts, selective=False)
    if plan.assigns_neurons:
        raise ConceptSpecError("neurons are no linears; `literal` edits blocks and 'kv'")
    with below_loras(pipe), unedited(pipe), torch.no_grad():
        check_clip_skip(pipe, request.clip_skip)
        spec = with_anchors(pipe, spec, request.alignment, request.clip_skip)
        made = erase_as_planned(
            pipe, spec, request, plan, measure=measure, planner=plan_every_linear
        )
    report = replace(made.report, seconds=time.perf_counter() - began)
    return replace(made, options=OtherMethod(NAME, request.to_dict()), report=report)


def plan_every_linear(planning: Planning) -> list[EditSite]:
    """Every linear of the planned blocks, each for its own output; then the readers."""
    live = planning.live
    there = {name for name, _ in live.named_modules()}
    sites: list[EditSite] = []
    for block in planned_blocks(planning):
        for leaf in encoder_family_of(live).linears:
            linear = f"{blocks_path(live)}.{block}.{leaf}"
            if linear in there:
                sites.append(site_at(planning, block, linear=linear, output=linear))
    return with_metrics(planning, [*sites, *reader_sites(planning)])
