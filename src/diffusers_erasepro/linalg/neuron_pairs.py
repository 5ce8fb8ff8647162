"""Two idle neurons of an MLP per word: they answer to its square and write what is missing.

A linear edit that answers 1 to a word answers 0.1 to what is a tenth like it. With g'z that linear
answer to the MLP's input z and f its activation, f(g'z) + f(-g'z) is about 0.85 (g'z)^2: what is a
tenth like the word gets a hundredth. Detector neurons with reused weights are Stealth edits'
(arXiv 2406.12670); the square of a pair of them is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IllPosedError
from .constrained import inverse
from .low_rank import LowRank, orthonormal

IDLE = 4
"""One in so many neurons may be taken: those that the others replace best."""
SPARE = 12
"""One in so many is taken, at most: of 512 neurons those of 21 words. Captions move less with
neurons than with blocks when 18 things are erased together, and more when 24 are."""
ANSWER = 1.5
"""g'z on the word itself. Larger writes less for the same and is steadier from phrasing to
phrasing, but answers more to others: at 1 the writer's edit is 1.9 times as large and the mean
square of others' drift 0.85 of it, at 3 they are 0.4 and 1.7."""
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MlpWeights:
    """Two linears with an activation between them."""

    W1: Tensor
    """`(hidden, d)` the detector."""
    b1: Tensor
    """`(hidden,)`"""
    W2: Tensor
    """`(d, hidden)` the writer."""
    activation: Activation


@dataclass(frozen=True)
class WordGap:
    """One word: what the MLP receives at it, and what the block's output lacks there."""

    z: Tensor
    """`(k, d)` the detector's inputs."""
    R: Tensor
    """`(k, d)` the gap."""
    weights: Tensor
    """`(k,)` what each row counts in means and least squares; 1 in all."""


def solve_neurons(
    words: Sequence[WordGap],
    mlp: MlpWeights,
    L1: Tensor | None = None,
    L2: Tensor | None = None,
) -> tuple[LowRank, LowRank]:
    """Edits of W1 and W2 that send each word to its anchor, and others nowhere.

    Per word i, with C what the detector usually receives,
    g_i = (C + sum_j mean(z_j z_j'))^-1 mean(z_i), scaled to answer `ANSWER` on the word. Its pair
    of neurons gets the rows g_i and -g_i, and the column that meets R_i by least squares. What the
    pair wrote before goes, by regression, to the neurons that are left.

    Args:
        words: One pair of neurons each.
        mlp: Its pairs take neurons of little bias, so that they are silent where g'z is 0.
        L1: `(d, d)` Cholesky factor of C; None is the identity.
        L2: `(hidden, hidden)` the same of what the writer receives.

    Returns:
        Edits in float64, of rank 2 n and 4 n at most.

    Raises:
        IllPosedError: More words than there are idle neurons for.
    """
    words = [WordGap(w.z.double(), w.R.double(), w.weights) for w in words]
    b1 = mlp.b1.double().cpu()
    W2 = mlp.W2.double()
    P = torch.eye(len(b1), dtype=torch.float64) if L2 is None else inverse(L2)
    taken = choose_idle(P, b1, W2, 2 * len(words))
    g = ANSWER * _detectors(words, L1)
    rows = torch.stack([g, -g], 1).flatten(0, 1)
    columns = []
    for i, word in enumerate(words):
        pair = slice(2 * i, 2 * i + 2)
        answer = mlp.activation(word.z @ rows[pair].T + b1[taken[pair]]).sum(1)
        weighted = word.weights * answer
        columns.append(weighted @ word.R / (word.weights * answer.square()).sum())
    written = torch.stack(columns, 1).repeat_interleave(2, 1)

    return replace_neurons(mlp, P, taken, rows, written)


def replace_neurons(
    mlp: MlpWeights, P: Tensor, taken: Sequence[int], rows: Tensor, columns: Tensor
) -> tuple[LowRank, LowRank]:
    """Edits of W1 and W2 that give neurons other rows and columns.

    What they wrote before goes, by regression, to the neurons that are left.

    Args:
        mlp: The weights as they are.
        P: `(hidden, hidden)` the inverse of the neurons' second moments.
        taken: The k neurons.
        rows: `(k, d)` of W1.
        columns: `(d, k)` of W2.
    """
    before = mlp.W2.double()[:, taken]
    chosen = torch.eye(len(P), dtype=torch.float64)[:, taken]
    # (k, hidden): regression of what is taken on the others
    heirs = torch.linalg.solve(P[taken][:, taken], -P[taken])
    heirs[:, taken] = 0.0
    writer = LowRank(torch.cat([columns - before, before], 1), torch.cat([chosen.T, heirs]))
    detector = LowRank(chosen, rows - mlp.W1.double()[taken])
    return detector, orthonormal(writer, rtol=1e-12)


def _detectors(words: Sequence[WordGap], L: Tensor | None) -> Tensor:
    """`(n, d)` one per word: about 1 on it, about 0 on other words and on what usually comes."""
    width = words[0].z.shape[1]
    C = torch.eye(width, dtype=torch.float64) if L is None else L @ L.T
    means = torch.stack([word.weights @ word.z for word in words])
    moments = sum(word.z.T @ (word.weights[:, None] * word.z) for word in words)
    g = torch.linalg.solve(C + moments, means.T).T
    return g / (g * means).sum(1, keepdim=True)


def choose_idle(P: Tensor, b1: Tensor, W2: Tensor, count: int) -> list[int]:
    """`count` neurons, one after the other: the one of least bias among those replaced best.

    P is the inverse of their second moments, so 1 / P_jj is what regression on the others leaves
    of neuron j. Once some are gone, P of the others is the Schur complement P - V V', which a
    pivoted Cholesky factor V gives column by column.

    Raises:
        IllPosedError: More than `SPARE` allows.
    """
    spare = len(b1) // SPARE
    if count > spare:
        words = "one word needs" if count == 2 else f"{count // 2} words need"
        raise IllPosedError(
            f"neurons: {words} {count} of them, {spare} of {len(b1)} may be taken; name fewer "
            "words, or edit encoder blocks, such as layers=(0, -1)"
        )
    power = W2.square().sum(0)
    V = P.new_zeros(len(P), 0)
    diagonal = P.diagonal().clone()
    found: list[int] = []
    for _ in range(count):
        loss = power / diagonal.clamp_min(1e-300)
        loss[found] = torch.inf
        replaceable = loss.argsort(stable=True)[: len(b1) // IDLE]
        j = int(replaceable[b1[replaceable].abs().argmin()])
        column = P[:, j] - V @ V[j]
        V = torch.cat([V, (column / column[j].sqrt())[:, None]], 1)
        diagonal = diagonal - V[:, -1].square()
        found.append(j)
    return found
