"""From a plan to the list of sites that the walk solves, shallow to deep."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...modules.linear import base_linear
from ...modules.tuners import edited_module
from ..covariance import kept_inputs, metrics_of
from ..memory import refuse_too_small
from .blocks import block_sites
from .embeddings import embedding_sites
from .gates import gate_sites
from .neurons import neuron_sites
from .planning import Planning
from .protocol import STATES, EditSite, inputs_of
from .readers import reader_sites


def plan_edits(planning: Planning) -> list[EditSite]:
    """Every edit of the plan. Of sites with one output, the earlier solves first."""
    embeddings = embedding_sites(planning)
    changed: dict[int, int] = {}
    for site in embeddings:
        changed |= site.rows
    return with_metrics(
        planning,
        [
            *embeddings,
            *gate_sites(planning, changed),
            *neuron_sites(planning),
            *block_sites(planning),
            *reader_sites(planning),
        ],
    )


def with_metrics(planning: Planning, sites: list[EditSite]) -> list[EditSite]:
    """`sites`, once the metrics of what they receive are known.

    Raises:
        NotEnoughMemoryError: There is no room for them, or for the walk.
    """
    linears = linears_of(planning.encoder, sites)
    refuse_too_small(planning, sites, linears)
    encoder = planning.encoder
    path = planning.path
    if planning.options.metric == "covariance":
        key = planning.content
        ridge = planning.options.ridge
        found = metrics_of(encoder, path, planning.spec, linears, key=key, ridge=ridge)
        planning.metrics.update(found)
    planning.kept.update(kept_inputs(encoder, path, planning.spec, linears))
    return sites


def linears_of(encoder: nn.Module, sites: Sequence[EditSite]) -> dict[str, nn.Module]:
    """The linears whose inputs the sites see."""
    found = {}
    for name in inputs_of(sites):
        if name == STATES:
            continue
        if hasattr(base_linear(encoder.get_submodule(name)), "in_features"):
            found[name] = edited_module(encoder, name)
    return found
