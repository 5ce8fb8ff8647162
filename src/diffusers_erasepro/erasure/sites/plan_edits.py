"""From a plan to the list of sites that the walk solves, shallow to deep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import partial

from torch import nn

from ...families.encoders import encoder_family_of
from ...modules.linear import base_linear
from ...modules.tuners import edited_module
from ..covariance import kept_inputs, metrics_of
from ..memory import refuse_too_small
from .blocks import block_sites
from .embeddings import embedding_sites, words_met
from .gates import GateSite, gate_sites, tokens_in_need, tokens_that_differ
from .neurons import neuron_sites, tries_gates
from .planning import Planning, list_names, words_of
from .protocol import STATES, EditSite, inputs_of
from .readers import reader_sites

STAND_IN = (
    "no row and no gate reaches {count} of the names in {where}, and encoder blocks are edited for "
    "them: {names}"
)
PARTLY = (
    "rows and gates reach {count} of the names in {where} only in part, as not every token that "
    "the anchor lacks can be distinguished from other uses of it"
)
FIRST_WORDS = (
    "{where} reads the first tokens of a name before it knows the rest, so that those of {count} "
    "names keep what they say, as their rows are not the name's alone: {names}. If such a word is "
    "meant by itself as well ('cat' of 'cat face'), give it as a synonym"
)
PARTLY_STAND_IN = ", and encoder blocks are edited for them as well: {names}"
PARTLY_LEFT = ", and no block stands in for them: {names}"


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
    """The words that neither rows nor gates reach, though these are asked for.

    A word is reached if each of its tokens that its anchor lacks has a row or a gate. Where gates
    are not tried, and in causal encoders, in which first tokens cannot have any, a row will do: the
    first block would add drift and nothing else. Notes say which words have neither a row nor a
    gate, which have too few, and whether blocks stand in for them.
    """
    gated: set[str] = set()
    halves: set[str] = set()
    for site in gates:
        gated |= site.words() - site.unclear()
        halves |= site.partial()
    causal = encoder_family_of(planning.live).causal
    rowed = {word for word in words_of(planning.spec.concepts) if planning.has_row(word)}
    lacking = tokens_in_need(planning, rowed)
    found: dict[str, bool] = {}
    for concept in planning.spec.concepts:
        recipe = planning.plan.recipe_of(concept)
        if not recipe.edits_tokens:
            continue
        rows_do = causal or not tries_gates(planning.live, recipe.gates)
        for word in concept.words:
            by_rows = word in rowed and (rows_do or not lacking[word])
            if word not in gated and not by_rows:
                found[word] = bool(recipe.otherwise)
    _note_unreached(planning, found, halves | rowed)
    if causal:
        _note_first_words(planning, gated - {*found})
    return {*found}


def _note_first_words(planning: Planning, words: Set[str]) -> None:
    """Say which of the words with gates keep their first tokens in a causal encoder."""
    first = tokens_that_differ(planning, words)
    names = [word for word in first if any(token.back for token in first[word])]
    if names:
        where = planning.path.use.encoder
        note = FIRST_WORDS.format(where=where, count=len(names), names=list_names(names))
        planning.notes.append(note)


def _note_unreached(planning: Planning, words: Mapping[str, bool], halves: Set[str]) -> None:
    """Say which words are not reached.

    Args:
        planning: Its notes get one or two more.
        words: And whether blocks stand in for each.
        halves: Those of which some tokens have a row or a gate.
    """
    where = planning.path.use.encoder
    for stands_in in (True, False):
        some = [word for word, has_block in words.items() if has_block == stands_in]
        none = [word for word in some if word not in halves]
        part = [word for word in some if word in halves]
        if none and stands_in:
            names = list_names(none)
            planning.notes.append(STAND_IN.format(where=where, count=len(none), names=names))
        if part:
            note = PARTLY + (PARTLY_STAND_IN if stands_in else PARTLY_LEFT)
            names = list_names(part)
            planning.notes.append(note.format(where=where, count=len(part), names=names))


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
