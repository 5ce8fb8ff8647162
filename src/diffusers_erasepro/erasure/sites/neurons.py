"""Two idle neurons per word, or per concept: together they answer to its square, and write the anchor in its place.

A linear edit that answers 1 to a word answers .1 to what is a tenth like it. With g'z that linear answer to the MLP's
input z and f its activation, f(g'z) + f(-g'z) is about .85 (g'z)^2: what is a tenth like the word gets a hundredth.
No paper has this; it is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...config.spec import Concept
from ...errors import ConceptSpecError, IllPosedError
from ...families.encoders import encoder_family_of
from ...families.variants import sites_of
from ...linalg.constrained import inverse
from ...linalg.low_rank import LowRank, orthonormal
from ...modules.linear import base_linear
from ...prompts.pairs import Pair, Rows

IDLE = 4
"""One in so many neurons may be given away: those that the others replace best."""
SPARE = 12
"""One in so many is, at most: of 512 neurons those of 21 words. Captions move less with neurons than with blocks when 18 things
are erased together, and more when 24 are."""
ANSWER = 1.5
"""g'z on the word itself. Larger writes less for the same and is steadier from phrasing to phrasing; others hear more: at 1 the
writer's edit is 1.9 times as large and the mean square of others' drift .85 of it, at 3 they are .4 and 1.7."""
EXACT = 64
"""An exact prompt counts as so many soft ones. What the neurons leave of it the last block has to close at the end of the prompt,
and that moves others; with more, phrasings that no list holds lack more."""
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """Where neurons are given away, and what they answer to."""

    first: bool
    """In the first block, or in the last that is read."""
    ends: bool
    """To the end of the prompt, where all words of a concept have one meaning and share a pair; or to each word's last token."""

    def rows(self, found: Rows) -> Rows:
        """Of rows aligned at both, the positions to answer to."""
        return found.ends() if self.ends else found.subjects()

    def names(self, pairs: Sequence[Pair], rows: Rows, concepts: Sequence[Concept]) -> list[str]:
        """Per position of `rows` of these pairs, which pair of neurons answers."""
        targets = {word: c.target if self.ends else word for c in concepts for word in c.words}
        return [targets[pairs[i].word] for i in rows.row.tolist()]


PLACES = {"neurons": Place(first=True, ends=False), "eos_neurons": Place(first=False, ends=True)}
"""By the name that `layers` has for them."""


@dataclass(frozen=True)
class Mlp:
    """The MLP of an encoder's block, by module names: `writer(activation(detector(z)))`."""

    detector: str
    activation: str
    writer: str
    closes: str


def mlp_of(encoder: nn.Module, block: int) -> Mlp:
    """The MLP of a block, whose neurons are given away.

    Raises:
        ConceptSpecError: It is gated, so that no neuron answers to one input alone.
    """
    family = encoder_family_of(encoder)
    if family.detector is None or family.activation is None:
        raise ConceptSpecError(
            f"neurons: the MLPs of {type(encoder).__name__} are gated, not two linears with an activation between; edit "
            "encoder blocks, such as layers=(0, -1)"
        )
    (site,) = sites_of(encoder, [block], "block")
    return Mlp(
        f"{site.closes}.{family.detector}",
        f"{site.closes}.{family.activation}",
        site.linear,
        site.closes,
    )


def room_for(encoder: nn.Module, words: int) -> bool:
    """Whether this encoder's MLPs have a pair to give away for each of so many words."""
    family = encoder_family_of(encoder)
    if family.detector is None or family.activation is None:
        return False
    hidden: Any = base_linear(encoder.get_submodule(mlp_of(encoder, 0).writer)).in_features
    return 2 * words <= hidden // SPARE


@dataclass(frozen=True)
class Neurons:
    """What a walk needs to give neurons away on its way."""

    mlp: Mlp
    writer: Tensor
    """`(d, hidden)` the writer's weight, as it is in force."""
    rows: Mapping[str, Rows]
    """The same prompts that the walk runs, aligned where the neurons answer."""
    solver: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], tuple[LowRank, LowRank]]
    """Per kind of rows `(n, d)`, what the detector receives and what the block's output lacks; the edits of both linears."""


class Heard:
    """What the linears of an MLP receive and say in a pass, some rows after the others."""

    def __init__(self, encoder: nn.Module, mlp: Mlp) -> None:
        self.activation: Activation = encoder.get_submodule(mlp.activation)
        self._found: tuple[list[Tensor], ...] = ([], [], [])
        detector, writer = (encoder.get_submodule(name) for name in (mlp.detector, mlp.writer))
        z, sums, told = self._found
        self.handles = [
            detector.register_forward_pre_hook(lambda _, args: z.append(args[0])),
            detector.register_forward_hook(lambda _, __, out: sums.append(out)),
            writer.register_forward_pre_hook(lambda _, args: told.append(args[0])),
        ]

    def taken(self) -> list[Tensor]:
        """The detector's inputs and outputs and the writer's inputs, of all rows."""
        return [torch.cat(parts) for parts in self._found]


def by_name(names: Mapping[str, Sequence[str]], found: Mapping[str, Tensor]) -> list[Tensor]:
    """Per kind `(n, ...)`, one row per name, as `(k, ...)` per name."""
    every, rows = [n for kind in found for n in names[kind]], torch.cat([*found.values()])
    return [rows[[n == name for n in every]] for name in dict.fromkeys(every)]


def weights(names: Mapping[str, Sequence[str]]) -> list[Tensor]:
    """Per name `(k,)`, how much each of its rows counts; 1 in all."""
    counts = {
        kind: torch.full(
            (len(names[kind]),), EXACT if kind == "exact" else 1.0, dtype=torch.float64
        )
        for kind in names
    }
    return [w / w.sum() for w in by_name(names, counts)]


def solve_neurons(
    z: Sequence[Tensor],
    R: Sequence[Tensor],
    w: Sequence[Tensor],
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    activation: Activation,
    L1: Tensor | None = None,
    L2: Tensor | None = None,
) -> tuple[LowRank, LowRank]:
    """Edits of the detector W1 and the writer W2 that send each word to its anchor, and others nowhere.

    Per word i, with C what the detector usually receives:  g_i = (C + sum_j mean(z_j z_j'))^-1 mean(z_i), scaled to answer
    `ANSWER` on the word. Its pair of neurons gets the rows g_i and -g_i, and the column that meets R_i by least squares. What the
    pair wrote before goes, by regression, to the neurons that are left.

    Args:
        z: Per word `(k, d)`, the detector's inputs at its last token.
        R: Per word `(k, d)`, what the block's output lacks there.
        w: Per word `(k,)`, what each row counts in its means and its least squares; 1 in all.
        W1: `(hidden, d)`
        b1: `(hidden,)`; the pairs take neurons of little bias, so that they are silent where g'z is 0.
        W2: `(d, hidden)`
        activation: Between the two.
        L1: `(d, d)` Cholesky factor of C; None is the identity.
        L2: `(hidden, hidden)` the same of what the writer receives.

    Returns:
        Edits in float64, of rank 2 n and 4 n at most.

    Raises:
        IllPosedError: More words than there are idle neurons for.
    """
    z, R = [x.double() for x in z], [x.double() for x in R]
    W1, b1, W2 = W1.double(), b1.double().cpu(), W2.double()
    P = torch.eye(len(b1), dtype=torch.float64) if L2 is None else inverse(L2)
    at = _idle(P, b1, W2, 2 * len(z))
    g = ANSWER * _detectors(z, w, L1)
    rows = torch.stack([g, -g], 1).flatten(0, 1)
    heard = [
        activation(x @ rows[2 * i : 2 * i + 2].T + b1[at[2 * i : 2 * i + 2]]).sum(1)
        for i, x in enumerate(z)
    ]
    met = [(v * f) @ r / (v * f.square()).sum() for v, f, r in zip(w, heard, R, strict=True)]
    columns = torch.stack(met, 1).repeat_interleave(2, 1)

    chosen = torch.eye(len(b1), dtype=torch.float64)[:, at]
    heirs = torch.linalg.solve(P[at][:, at], -P[at])  # (2 n, hidden): each as the others tell it
    heirs[:, at] = 0.0
    replaced = LowRank(torch.cat([columns - W2[:, at], W2[:, at]], 1), torch.cat([chosen.T, heirs]))
    return LowRank(chosen, rows - W1[at]), orthonormal(replaced, rtol=1e-12)


def _detectors(z: Sequence[Tensor], w: Sequence[Tensor], L: Tensor | None) -> Tensor:
    """`(n, d)` one per word: about 1 on it, about 0 on the other words and on what usually comes."""
    C = torch.eye(z[0].shape[1], dtype=torch.float64) if L is None else L @ L.T
    means = torch.stack([v @ x for v, x in zip(w, z, strict=True)])
    g = torch.linalg.solve(
        C + sum(x.T @ (v[:, None] * x) for v, x in zip(w, z, strict=True)), means.T
    ).T
    return g / (g * means).sum(1, keepdim=True)


def _idle(P: Tensor, b1: Tensor, W2: Tensor, count: int) -> list[int]:
    """`count` neurons, one after the other: of those whose loss the others make good best, the one of least bias.

    P is the inverse of their second moments, so 1 / P_jj is what regression on the others leaves of neuron j. Once some are
    gone, P of the others is the Schur complement: P - V V', which a pivoted Cholesky factor V tells column by column.
    """
    idle, spare, power, found = len(b1) // IDLE, len(b1) // SPARE, W2.square().sum(0), list[int]()
    V, diagonal = P.new_zeros(len(P), 0), P.diagonal().clone()
    if count > spare:
        raise IllPosedError(
            f"neurons: {count // 2} words need {count} of them, {spare} of {len(b1)} may be given away; name fewer "
            "words, or edit encoder blocks, such as layers=(0, -1)"
        )
    for _ in range(count):
        loss = power / diagonal.clamp_min(1e-300)
        loss[found] = torch.inf
        replaceable = loss.argsort(stable=True)[:idle]
        j = int(replaceable[b1[replaceable].abs().argmin()])
        column = P[:, j] - V @ V[j]
        V = torch.cat([V, (column / column[j].sqrt())[:, None]], 1)
        diagonal = diagonal - V[:, -1].square()
        found.append(j)
    return found
