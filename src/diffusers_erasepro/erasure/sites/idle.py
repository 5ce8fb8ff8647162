"""Which idle neurons an erasure gives away, as a walk asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...config.options import Options, held
from ...config.spec import ErasureSpec
from ...errors import ConceptSpecError
from ...linalg.low_rank import LowRank
from ...modules.linear import base_linear
from ...modules.storage import effective_weight
from ...prompts.pairs import ALIGNMENTS, Pair, Rows, TextPath, rows_of
from .neurons import PLACES, Mlp, Neurons, by_name, mlp_of, solve_neurons, weights


def asked_for(
    live: nn.Module, spec: ErasureSpec, choice: Options, closing: Sequence[int]
) -> dict[str, Mlp]:
    """Where neurons are given away, by their name among the layers."""
    if spec.keep and choice.takes_neurons:
        raise ConceptSpecError(
            "neurons: what those given away did for the prompts in keep is made up for, not exactly kept; leave keep out, or "
            "edit encoder blocks, such as layers=(0, -1)"
        )
    asked = {
        n: mlp_of(live, 0 if place.first else closing[0])
        for n, place in PLACES.items()
        if n in choice.every_layer
    }
    if len({*asked.values()}) < len(asked):
        raise ConceptSpecError(
            f"neurons: the first block of {type(live).__name__} is the last that is read, and cannot give its own away twice; "
            "edit encoder blocks, such as layers=(0,)"
        )
    return asked


def given_away(
    live: nn.Module,
    path: TextPath,
    spec: ErasureSpec,
    choice: Options,
    mlps: Mapping[str, Mlp],
    pairs: Mapping[str, Sequence[Pair]],
    rows: Mapping[str, Rows],
    L: Mapping[str, Tensor],
) -> list[Neurons]:
    """The neurons of every place asked for; `rows` are those of `pairs`, as the sites hold them."""
    if not mlps:
        return []
    aligned, both = held(choice, spec.concepts), ALIGNMENTS["last_subject+eos"]
    as_held = all(alignment == both for alignment in aligned.values())
    every = {
        kind: rows[kind] if as_held else rows_of(found, path, both) for kind, found in pairs.items()
    }
    return [
        _neurons(live, spec, choice, which, mlp, pairs, every, L) for which, mlp in mlps.items()
    ]


def _neurons(
    live: nn.Module,
    spec: ErasureSpec,
    choice: Options,
    which: str,
    mlp: Mlp,
    pairs: Mapping[str, Sequence[Pair]],
    every: Mapping[str, Rows],
    L: Mapping[str, Tensor],
) -> Neurons:
    """Idle neurons in one place; `every` are the rows of `pairs` aligned at the word and at the end."""
    place, concepts = PLACES[which], [c for c in spec.concepts if which in choice.recipe(c).layers]
    words = {word for c in concepts for word in c.words}
    rows = {kind: place.rows(found.naming(words, pairs[kind])) for kind, found in every.items()}
    names = {kind: place.names(pairs[kind], rows[kind], concepts) for kind in pairs}
    W1, W2 = (effective_weight(live, name) for name in (mlp.detector, mlp.writer))
    b1: Any = base_linear(live.get_submodule(mlp.detector)).bias
    activation: Any = live.get_submodule(mlp.activation)

    def solver(z: Mapping[str, Tensor], R: Mapping[str, Tensor]) -> tuple[LowRank, LowRank]:
        grouped = (by_name(names, z), by_name(names, R), weights(names))
        return solve_neurons(
            *grouped, W1, b1, W2, activation, L.get(mlp.detector), L.get(mlp.writer)
        )

    return Neurons(mlp, W2, rows, solver)
