"""Gates: two idle neurons of an MLP per token of a name, as a bounded step of a linear detector.

A detector g answers 1 to the token in its context and little to anything else. The constant c
answers 1 to whatever comes. With t between the highest answer elsewhere and the lowest on the name,
the neuron with the row b (g - t c) is silent below t, and the difference of two such neurons is a
step: 0 below the first threshold, flat above the second. Its column writes what is missing.

Detector neurons with a threshold that needs no bias are Stealth edits' (arXiv 2406.12670). GLoCE
(CVPR 2025), CPE (ICLR 2025) and SPM erase with gates. A gate that is a plain low-rank delta, in
closed form from text alone, we have found nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IllPosedError
from .constrained import inverse
from .low_rank import LowRank
from .neuron_pairs import SPARE, MlpWeights, replace_neurons

RIDGE = 0.01
"""Share of the identity in C."""
QUIET = 0.5
"""Answer elsewhere up to which nothing is amiss."""
MISTAKE = 0.005
"""What the square of a higher one counts, against the mean square of what the name's own positions
lack of 1."""
METRIC_WEIGHT = 0.3
"""What the mean square of the answer to captions counts."""
SOLVES = 8
"""Of the detector, at most: each minds those that answered too much to the last."""
SETTLED = 1e-3
"""Relative change of the detector at which it stays as it is."""
STEP_SPAN = (0.3, 0.6)
"""Of the way from the highest answer elsewhere to the lowest on the name: where the step begins,
and where it is over."""
SLOPE = 24.0
"""Least slope b. A narrow margin needs a steeper step; a steep one fails abruptly in 16 bits."""
STEEPEST = 120.0
HEADROOM = 5.0
"""b times the distance from the highest answer elsewhere to the first threshold: so far below 0
GELU returns 1e-6 of its slope."""
COMPANY = 0.999
"""Share of the strangers in whose company a name's token must not fire. "golf" is told from itself
beside other words than "ball", not beside "balls"."""
UNSURE = 0.05
"""Share of the name's prompts whose lower answers set no threshold: the step is not over there."""
LEAST_LEVEL = 0.2
"""Answer of the constant that a detector is solved with, at least."""
LEAST_MARGIN = 0.05
"""Below, a token is not told from others, and gets no gate."""


@dataclass(frozen=True)
class GateToken:
    """One token of a name: what the MLP receives at it, and what the block's output lacks there."""

    name: str
    """What messages call it."""
    z: Tensor
    """`(k, d)` the detector's inputs."""
    R: Tensor
    """`(k, d)` the gap."""
    others: Tensor
    """`(m, d)` the detector's inputs at the same token in other company; nothing may fire there."""


@dataclass(frozen=True)
class Elsewhere:
    """What the MLP receives where no gate may fire."""

    captions: Tensor
    """`(n, d)` at captions; the constant is constant there."""
    near: Tensor
    """`(m, d)` at near misses; they join the metric."""
    scanned: Tensor
    """`(w, d)` at words of the vocabulary; the hardest join the metric."""


@dataclass(frozen=True)
class Detection:
    """How a token is told from everything else: by the answer of `g` over that of `constant`."""

    g: Tensor
    """`(d,)` answers 1 to the token."""
    constant: Tensor
    """`(d,)` answers 1 to whatever comes."""
    metric: Tensor
    """`(d, d)` second moments where g must not answer."""
    high: float
    """The highest answer elsewhere."""
    low: float
    """The lowest on the name."""


@dataclass(frozen=True)
class Gates:
    """The edits of an MLP's linears, and how far each token was told from others."""

    detector: LowRank
    writer: LowRank
    margins: tuple[float, ...]
    """Per token: the lowest answer on the name less the highest elsewhere."""
    factor: LowRank | None = None
    """Of the linear whose output multiplies the activation's, where the MLP is gated itself."""
    least: float = LEAST_MARGIN
    """Margin from which on a token has a gate."""
    columns: LowRank | None = None
    """`(d, n)` what each of n gates writes, and `(n, hidden)` which neurons it takes; the writer's
    share of it."""

    def has_gate(self, i: int) -> bool:
        """Whether token `i` has a gate."""
        return self.margins[i] >= self.least


def solve_gates(
    tokens: Sequence[GateToken],
    elsewhere: Elsewhere,
    mlp: MlpWeights,
    L2: Tensor | None = None,
    detections: Sequence[Detection] | None = None,
) -> Gates:
    """A gate for every token that can be told from everything else.

    With C the second moments of what the detector receives at the captions, c answers 1 to whatever
    comes, and z from here on is divided by its answer. The detector of a token is

        g = argmin mean_i (1 - g z_i)^2 + METRIC_WEIGHT g C g + sum_j w_j max(0, g z_j - QUIET)^2
        c = C^-1 mean(z),   scaled to mean(c z) = 1

    with i over the name's positions and j over captions, near misses, scanned words, the other
    tokens and the token in other company: a support vector machine with squared hinges. A plain
    ridge regression, whose mistakes count on average, answers 1 to "golf" of "golf club".

    Args:
        tokens: One pair of neurons each.
        elsewhere: Where none may fire.
        mlp: Its pairs take the neurons that the others replace best. Files made apart take the
            same ones: from the sixteen next best, captions move three times as much.
        L2: `(hidden, hidden)` Cholesky factor of the second moments of what the writer usually
            receives; None is the identity.
        detections: How they are told from what stands elsewhere, if that is known already.

    Returns:
        Edits in float64, of rank 2 n and 4 n at most for n gates; of rank 0 where none is open.

    Raises:
        IllPosedError: More tokens than there are idle neurons for.
    """
    W1 = mlp.W1.double()
    b1 = mlp.b1.double().cpu()
    W2 = mlp.W2.double()
    z = [token.z.double() for token in tokens]
    found = detect_tokens(tokens, elsewhere) if detections is None else detections
    margins = tuple(at.low - at.high for at in found)
    rows = [_step_rows(at.g, at.constant, at.high, at.low) for at in found]
    gates = Gates(no_edit(W1), no_edit(W2), margins, least=LEAST_MARGIN)
    opened = [i for i in range(len(tokens)) if gates.has_gate(i)]
    if not opened:
        return gates

    P = torch.eye(len(b1), dtype=torch.float64) if L2 is None else inverse(L2)
    taken = assign_neurons(P, W2, len(opened))
    written = []
    picks = torch.zeros(len(opened), len(b1), dtype=torch.float64)
    for at, i in enumerate(opened):
        pair = taken[2 * at : 2 * at + 2]
        # the neurons keep their biases; the constant takes those away wherever it answers 1
        rows[i] = rows[i] - b1[pair][:, None] * found[i].constant
        sums = mlp.activation((z[i] @ rows[i].T + b1[pair]).float()).double()
        step = sums[:, 0] - sums[:, 1]
        column = step @ tokens[i].R.double() / step.square().sum()
        written.append(column)
        picks[at, pair] = torch.tensor([1.0, -1.0], dtype=torch.float64)
    answering = torch.cat([rows[i] for i in opened])
    columns = LowRank(torch.stack(written, 1), picks)
    detector, writer = replace_neurons(mlp, P, taken, answering, columns.dense()[:, taken])
    return Gates(detector, writer, margins, least=LEAST_MARGIN, columns=columns)


def detect_tokens(tokens: Sequence[GateToken], elsewhere: Elsewhere) -> list[Detection]:
    """How each token is told from the others and from what stands elsewhere, in float64."""
    captions = elsewhere.captions.double()
    C = _mean_outer(captions)
    C.diagonal().add_(RIDGE * C.diagonal().mean())
    constant = torch.linalg.solve(C, captions.mean(0))
    constant = constant / (captions @ constant).mean()
    L = torch.linalg.cholesky(METRIC_WEIGHT * C)
    shared = [
        _Wrong.of(elsewhere.captions, constant, MISTAKE),
        _Wrong.of(elsewhere.scanned, constant, MISTAKE),
        _Wrong.of(elsewhere.near, constant, 1 / max(len(elsewhere.near), 1)),
    ]
    names = [_Wrong.of(token.z, constant, 1 / len(token.z)) for token in tokens]
    metric = C + sum(_mean_outer(token.z.double()) for token in tokens)

    found = []
    for i, token in enumerate(tokens):
        company = _Wrong.of(token.others, constant, MISTAKE)
        wrong = [*shared, *(x for j, x in enumerate(names) if j != i)]
        z = token.z.double() / names[i].level.clamp_min(LEAST_LEVEL)[:, None]
        g, mistaken = _detector(z, L, [*wrong, company])
        high = max(x.highest(g) for x in wrong)
        high = max(high, company.highest(g, share=COMPANY))
        low = float((z @ g).sort().values[int(UNSURE * len(z))])
        found.append(Detection(g, constant, metric + mistaken.T @ mistaken, high, low))
    return found


@dataclass(frozen=True)
class _Wrong:
    """Inputs at which a detector must not answer."""

    x: Tensor
    """`(n, d)`"""
    level: Tensor
    """`(n,)` in float64, what the constant answers."""
    weight: float
    """What the square of a mistake counts."""

    @classmethod
    def of(cls, x: Tensor, constant: Tensor, weight: float) -> _Wrong:
        """With what the constant answers."""
        return cls(x, x.double() @ constant, weight)

    def mistaken(self, g: Tensor) -> Tensor:
        """`(k, d)` what is answered too much, weighted."""
        level = self.level.clamp_min(LEAST_LEVEL)
        some = (self.x @ g.to(self.x)).double() / level > QUIET
        return self.weight**0.5 * self.x[some].double() / level[some][:, None]

    def highest(self, g: Tensor, *, share: float = 1.0) -> float:
        """The highest answer, or the highest of all but the last of a share."""
        if not len(self.x):
            return 0.0
        answers = self.x.double() @ g
        # where the constant is not one, no threshold holds: it must answer there as well
        answers = torch.where(self.level > 1e-3, answers / self.level.clamp_min(1e-3), answers)
        return float(answers.sort().values[int(share * (len(answers) - 1))])


def assign_neurons(P: Tensor, W2: Tensor, gates: int, *, each: int = 2) -> list[int]:
    """So many neurons per gate: one after the other, the one whose loss costs least.

    P is the inverse of their second moments, so that |w_j|^2 / P_jj is what the loss of neuron j
    costs once the others have taken over what regression gives them (Optimal Brain Surgeon).

    Raises:
        IllPosedError: More than one in `SPARE` would be needed.
    """
    spare = W2.shape[1] // SPARE
    if each * gates > spare:
        tokens = "one token needs" if gates == 1 else f"{gates} tokens need"
        raise IllPosedError(
            f"gates: {tokens} {each * gates} neurons, {spare} of "
            f"{W2.shape[1]} may be taken; name fewer words, or edit encoder blocks, such as "
            "layers=(0, -1)"
        )
    power = W2.square().sum(0)
    rest = P.clone()
    taken: list[int] = []
    for _ in range(each * gates):
        cost = power / rest.diagonal().clamp_min(1e-300)
        cost[taken] = torch.inf
        j = int(cost.argmin())
        rest = rest - torch.outer(rest[:, j], rest[j]) / rest[j, j]
        taken.append(j)
    return taken


def _mean_outer(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def _detector(z: Tensor, L: Tensor, wrong: Sequence[_Wrong]) -> tuple[Tensor, Tensor]:
    """`(d,)` answers 1 at the name's positions on average, and little elsewhere.

    Args:
        z: `(k, d)` at the name's positions.
        L: Cholesky factor of what a steady answer costs.
        wrong: Where it must not answer.

    Returns:
        The detector, and `(n, d)` what it was solved against, weighted.
    """
    own = z / len(z) ** 0.5
    mean = z.mean(0)
    mistaken = own[:0]
    g = _regress(L, own, mean)
    for _ in range(SOLVES):
        parts = [x.mistaken(g) for x in wrong]
        mistaken = torch.cat(parts)
        tolerated = torch.zeros_like(mean)
        for part, x in zip(parts, wrong, strict=True):
            tolerated = tolerated + QUIET * x.weight**0.5 * part.sum(0)
        last = g
        g = _regress(L, torch.cat([own, mistaken]), mean + tolerated)
        if (g - last).norm() <= SETTLED * g.norm():
            break
    return g / (g @ mean), mistaken


def _regress(L: Tensor, J: Tensor, right: Tensor) -> Tensor:
    """(L L' + J' J)^-1 right."""
    if 2 * len(J) > len(L):
        return torch.linalg.solve(L @ L.T + J.T @ J, right)
    V = torch.linalg.solve_triangular(L, J.T, upper=False)
    a = torch.linalg.solve_triangular(L, right[:, None], upper=False)
    inner = torch.eye(len(J), dtype=torch.float64) + V.T @ V
    a = a - V @ torch.linalg.solve(inner, V.T @ a)
    return torch.linalg.solve_triangular(L.T, a, upper=True)[:, 0]


def _step_rows(g: Tensor, constant: Tensor, high: float, low: float) -> Tensor:
    """`(2, d)` the rows of both neurons."""
    margin = max(low - high, 1e-3)
    slope = min(max(SLOPE, HEADROOM / (STEP_SPAN[0] * margin)), STEEPEST)
    levels = [high + share * margin for share in STEP_SPAN]
    return slope * torch.stack([g - level * constant for level in levels])


def no_edit(weight: Tensor) -> LowRank:
    """Of rank 0."""
    return LowRank(weight.new_zeros(weight.shape[0], 0), weight.new_zeros(0, weight.shape[1]))
