"""Idle neurons of an MLP, a pair per word or concept, that write the anchor in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...config.plan import ALIGNMENTS, block_of_gates
from ...config.spec import Concept
from ...errors import ConceptSpecError
from ...families.encoders import blocks_path, blocks_read, encoder_family_of
from ...linalg.gated_mlps import GatedMlpWeights
from ...linalg.low_rank import LowRank
from ...linalg.neuron_pairs import SPARE, MlpWeights, WordGap, solve_neurons
from ...modules.linear import base_linear, resident_bias
from ...modules.storage import effective_weight
from ...prompts.alignment import Rows, rows_of
from ...prompts.pairs import Pair
from .blocks import stream_of
from .planning import Planning, words_of
from .protocol import ByKind, Edits

EXACT = 64
"""An exact prompt counts as so many soft ones. What the neurons leave of it the last block has to
close at the end of the prompt, and that moves others; with more, phrasings that no list holds lack
more."""


@dataclass(frozen=True)
class Place:
    """Where idle neurons are taken, and what they answer to."""

    first: bool
    """In the first block, or in the last that is read."""
    ends: bool
    """To the end of the prompt, where all words of a concept have one meaning and share a pair; or
    to each word's last token."""

    def rows(self, found: Rows) -> Rows:
        """Of rows aligned at both, the positions to answer to."""
        return found.ends() if self.ends else found.subjects()

    def names(self, pairs: Sequence[Pair], rows: Rows, concepts: Sequence[Concept]) -> list[str]:
        """Per position of `rows` of these pairs, which pair of neurons answers."""
        targets = {}
        for concept in concepts:
            for word in concept.words:
                targets[word] = concept.target if self.ends else word
        return [targets[pairs[i].word] for i in rows.row.tolist()]


PLACES = {
    "neurons": Place(first=True, ends=False),
    "eos_neurons": Place(first=False, ends=True),
}
"""By the name that `layers` has for them."""


@dataclass(frozen=True)
class Mlp:
    """The MLP of an encoder's block, by module names: `writer(activation(detector(z)))`.

    If gated, `writer(activation(detector(z)) * factor(z))`.
    """

    detector: str
    activation: str
    writer: str
    output: str
    factor: str | None = None


@dataclass(frozen=True)
class MlpSite:
    """Idle neurons of one MLP, whose two linears change together; a kind of it says how."""

    component: str
    mlp: Mlp
    mlp_weights: MlpWeights
    """As they are in force."""
    positions: Mapping[str, Rows]

    @property
    def output(self) -> str:
        """The block."""
        return self.mlp.output

    @property
    def inputs(self) -> tuple[str, ...]:
        """Three of the MLP's modules; what the activation receives is what the detector returns."""
        return (self.mlp.detector, self.mlp.activation, self.mlp.writer)

    def apply(
        self, output: Tensor, inputs: Mapping[str, Tensor], edits: Edits
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The MLP runs once more with both edits, and the writer receives something new."""
        if not edits.factors:
            return output, {}
        z = inputs[self.mlp.detector]
        sums = inputs[self.mlp.activation]
        before = inputs[self.mlp.writer]
        detector = edits.factors[self.mlp.detector]
        writer = edits.factors[self.mlp.writer]
        after = self.mlp_weights.activation(sums + detector(z))
        if self.mlp.factor is not None and isinstance(self.mlp_weights, GatedMlpWeights):
            U = self.mlp_weights.U.to(z)
            factors = nn.functional.linear(z, U, self.mlp_weights.bU.to(z))
            after = after * (factors + edits.factors[self.mlp.factor](z))
        moved = nn.functional.linear(after - before, self.mlp_weights.W2.to(after))
        return output + (moved + writer(after)), {self.mlp.writer: after}


@dataclass(frozen=True)
class NeuronSite(MlpSite):
    """A pair of idle neurons per word or concept."""

    solver: Callable[[ByKind, ByKind], tuple[LowRank, LowRank]]
    """Inputs of the detector and gaps, to the edits of detector and writer."""

    def solve(self, inputs: Mapping[str, ByKind], gap: ByKind) -> Edits:
        """The rows that detect the words, and the columns that write what is missing."""
        z = inputs[self.mlp.detector]
        detector, writer = self.solver(z, gap)
        factors = {self.mlp.detector: detector, self.mlp.writer: writer}
        return Edits(factors, {self.mlp.detector: z["exact"].T})


def neuron_sites(planning: Planning) -> list[NeuronSite]:
    """The places that the plan names.

    Raises:
        ConceptSpecError: The encoder has no such neurons to take, or `keep` asks for more than
            neurons hold.
    """
    mlps = _planned_mlps(planning)
    if not mlps:
        return []
    both = ALIGNMENTS["last_subject+eos"]
    alignments = planning.plan.alignments(planning.spec.concepts)
    every = planning.rows
    if any(alignment != both for alignment in alignments.values()):
        every = {
            kind: rows_of(pairs, planning.path, both) for kind, pairs in planning.pairs.items()
        }
    return [_site(planning, name, mlp, every) for name, mlp in mlps.items()]


def has_room(encoder: nn.Module, words: int) -> bool:
    """Whether this encoder's MLPs have a pair to spare for each of so many words."""
    found = find_mlp(encoder, 0)
    return found is not None and found.factor is None and 2 * words <= count_spare(encoder, found)


def has_gates(encoder: nn.Module) -> bool:
    """Whether the first block of this encoder has neurons that gates may take."""
    found = find_mlp(encoder, 0)
    return found is not None and count_spare(encoder, found) >= 2


def tries_gates(encoder: nn.Module, asked: str | None) -> bool:
    """Whether gates are tried in this encoder.

    In MLPs that are gated themselves they tell hardly a name from others, and are tried only where
    a block is named.

    Args:
        encoder: Of a pipeline.
        asked: The name that stands for gates among a concept's layers (`Recipe.gates`).
    """
    if asked is None or not has_gates(encoder):
        return False
    mlp = find_mlp(encoder, 0)
    return mlp is not None and (mlp.factor is None or block_of_gates(asked) is not None)


def count_spare(encoder: nn.Module, mlp: Mlp) -> int:
    """How many neurons of an MLP may be taken."""
    writer: Any = base_linear(encoder.get_submodule(mlp.writer))
    return int(writer.in_features) // SPARE


def find_mlp(encoder: nn.Module, block: int) -> Mlp | None:
    """The MLP of a block; None where its neurons cannot be taken.

    That is where one linear holds both halves of a gated MLP, or a norm follows its last.
    """
    family = encoder_family_of(encoder)
    if family.detector is None or family.activation is None or family.writer is None:
        return None
    path = f"{blocks_path(encoder)}.{block}"
    parts = [family.detector, family.activation, family.factor]
    names = [None if part is None else f"{path}.{part}" for part in parts]
    known = {name for name, _ in encoder.named_modules()}
    if not {name for name in names if name is not None} <= known:
        return None
    detector, activation, factor = names
    return Mlp(
        str(detector), str(activation), f"{path}.{family.writer}", stream_of(encoder, path), factor
    )


def mlp_of(encoder: nn.Module, block: int) -> Mlp:
    """The MLP of a block, of two linears with an activation between.

    Raises:
        ConceptSpecError: It is gated, so that no neuron answers to one input alone.
    """
    found = find_mlp(encoder, block)
    if found is None or found.factor is not None:
        raise ConceptSpecError(
            f"neurons: the MLPs of {type(encoder).__name__} are gated, not two linears with an "
            "activation between; edit encoder blocks, such as layers=(0, -1)"
        )
    return found


def weights_of_mlp(live: nn.Module, mlp: Mlp) -> MlpWeights:
    """The weights of an MLP of an encoder, as they are in force."""
    activation: Any = live.get_submodule(mlp.activation)
    W1 = effective_weight(live, mlp.detector)
    W2 = effective_weight(live, mlp.writer)
    b1 = _bias_of(live, mlp.detector)
    if mlp.factor is None:
        return MlpWeights(W1, b1, W2, activation)
    U = effective_weight(live, mlp.factor)
    return GatedMlpWeights(W1, b1, W2, activation, U, _bias_of(live, mlp.factor))


def _bias_of(live: nn.Module, name: str) -> Tensor:
    linear: Any = base_linear(live.get_submodule(name))
    bias = resident_bias(linear)
    return torch.zeros(linear.out_features, dtype=torch.float32) if bias is None else bias.cpu()


def _planned_mlps(planning: Planning) -> dict[str, Mlp]:
    """Where neurons are taken, by their name among the layers."""
    if planning.spec.keep and planning.plan.assigns_neurons:
        raise ConceptSpecError(
            "neurons: what those that are taken did for the prompts in keep is made up for, not "
            "exactly kept; leave keep out, or edit encoder blocks, such as layers=(0, -1)"
        )
    closing = blocks_read(planning.live, planning.path.use.readings)
    found = {}
    for name, place in PLACES.items():
        if name in planning.plan.layers:
            found[name] = mlp_of(planning.live, 0 if place.first else closing[0])
    if len({*found.values()}) < len(found):
        raise ConceptSpecError(
            f"neurons: the first block of {type(planning.live).__name__} is the last that is read, "
            "and cannot give its own away twice; edit encoder blocks, such as layers=(0,)"
        )
    return found


def _site(planning: Planning, name: str, mlp: Mlp, every: Mapping[str, Rows]) -> NeuronSite:
    """Idle neurons in one place; `every` are the rows aligned at the word and at the end."""
    place = PLACES[name]
    live = planning.live
    concepts = planning.plan.concepts_at(name, planning.spec.concepts)
    words = words_of(concepts)
    rows = {}
    names = {}
    for kind, pairs in planning.pairs.items():
        # a pair that answers to several forms answers less sharply to each
        written = every[kind].naming(words, pairs).as_written(pairs)
        rows[kind] = place.rows(written)
        names[kind] = place.names(pairs, rows[kind], concepts)
    weights = weights_of_mlp(live, mlp)

    def solver(z: ByKind, gap: ByKind) -> tuple[LowRank, LowRank]:
        L1 = planning.metrics.get(mlp.detector)
        L2 = planning.metrics.get(mlp.writer)
        return solve_neurons(word_gaps(names, z, gap), weights, L1, L2)

    component = planning.path.use.encoder
    return NeuronSite(component, mlp, weights, rows, solver)


def word_gaps(names: Mapping[str, Sequence[str]], z: ByKind, gap: ByKind) -> list[WordGap]:
    """Inputs and gaps per name; an exact prompt counts as `EXACT` soft ones.

    Args:
        names: Per kind, whose each row is.
        z, gap: Per kind `(n, d)`.
    """
    order: list[str] = []
    counts: list[float] = []
    for kind in z:
        order += names[kind]
        counts += [float(EXACT) if kind == "exact" else 1.0] * len(names[kind])
    inputs = torch.cat([*z.values()])
    gaps = torch.cat([*gap.values()])
    weights = torch.tensor(counts, dtype=torch.float64)
    found = []
    for name in dict.fromkeys(order):
        mine = [other == name for other in order]
        found.append(WordGap(inputs[mine], gaps[mine], weights[mine] / weights[mine].sum()))
    return found
