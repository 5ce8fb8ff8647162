"""From a plan to the list of sites that the walk solves, shallow to deep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from ...modules.linear import base_linear
from ...modules.tuners import edited_module
from ..covariance import kept_inputs, metrics_of
from ..memory import refuse_too_small
from .blocks import block_sites
from .embeddings import embedding_sites, words_met
from .gates import GateSite, gate_sites
from .neurons import neuron_sites
from .planning import Planning, list_names
from .protocol import STATES, EditSite, inputs_of
from .readers import reader_sites

STAND_IN = (
    "no row and no gate reaches {count} of the names in {where}, and encoder blocks are edited for "
    "them: {names}"
)


def plan_edits(planning: Planning) -> list[EditSite]:
    """Every edit of the plan. Of sites with one output, the earlier solves first."""
    embeddings = embedding_sites(planning)
    for site in embeddings:
        planning.changed.update(site.rows)
    gates = gate_sites(planning)
    planning.unreached.update(_find_unreached(planning, gates))
    planning.met.update(words_met(planning))
    return with_metrics(
        planning,
        [
            *embeddings,
            *gates,
            *neuron_sites(planning),
            *block_sites(planning),
            *reader_sites(planning),
        ],
    )


def _find_unreached(planning: Planning, gates: Sequence[GateSite]) -> set[str]:
    """The words of which no token gets another row and none has a gate, though one is asked for.

    Where blocks stand in for them, a note says so.
    """
    gated: set[str] = set()
    for site in gates:
        gated |= site.words() - site.unclear()
    found = set()
    noted = []
    for concept in planning.spec.concepts:
        recipe = planning.plan.recipe_of(concept)
        if not recipe.edits_tokens:
            continue
        for word in concept.words:
            if word not in gated and not planning.has_row(word):
                found.add(word)
                noted += [word] if recipe.otherwise else []
    if noted:
        where = planning.path.use.encoder
        names = list_names(noted)
        planning.notes.append(STAND_IN.format(where=where, count=len(noted), names=names))
    return found


def with_metrics(planning: Planning, sites: list[EditSite]) -> list[EditSite]:
    """`sites`, once the metrics of what they receive are known, if any of them needs one.

    Raises:
        NotEnoughMemoryError: There is no room for them, or for the walk.
    """
    linears = linears_of(planning.encoder, sites)
    refuse_too_small(planning, sites, linears)
    encoder = planning.encoder
    path = planning.path
    reads_states = STATES in inputs_of(sites)
    if planning.options.metric == "covariance" and (linears or reads_states):
        asked = partial(
            metrics_of,
            encoder,
            path,
            planning.spec,
            key=planning.content,
            ridge=planning.options.ridge,
            states=path.use.readings[0] if reads_states else None,
        )
        planning.metrics.update(asked(linears))
        writers = {site.mlp.writer: linears[site.mlp.writer] for site in _with_open_gates(sites)}
        if writers:
            planning.regressions.update(asked(writers, for_regression=True))
    planning.kept.update(kept_inputs(encoder, path, planning.spec, linears))
    return sites


def _with_open_gates(sites: Sequence[EditSite]) -> list[GateSite]:
    found = []
    for site in sites:
        if isinstance(site, GateSite) and max(site.margins, default=0.0) >= site.least:
            found.append(site)
    return found


def linears_of(encoder: nn.Module, sites: Sequence[EditSite]) -> dict[str, nn.Module]:
    """The linears whose inputs the sites see."""
    found = {}
    for name in inputs_of(sites):
        if name == STATES:
            continue
        if hasattr(base_linear(encoder.get_submodule(name)), "in_features"):
            found[name] = edited_module(encoder, name)
    return found
