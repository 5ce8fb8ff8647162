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
ROUNDS = 2
"""How often the hardest of the scanned words and of the captions join the metric. More rounds, and
strangers' company among them, widen the margin on what is seen and fire on what is not."""
HARDEST = 20
"""Of each, so many join in a round."""
HARDNESS = 0.5
"""What their moments count in the metric."""
STEP_SPAN = (0.3, 0.65)
"""Of the way from the highest answer elsewhere to the lowest on the name: where the step begins,
and where it is over."""
SLOPE = 24.0
"""Least slope b. A narrow margin needs a steeper step; a steep one fails abruptly in 16 bits."""
STEEPEST = 120.0
HEADROOM = 5.0
"""b times the distance from the highest answer elsewhere to the first threshold: so far below 0
GELU returns 1e-6 of its slope."""
COMPANY = 0.99
"""Share of the strangers in whose company a name's token must not fire. "golf" is told from itself
beside most other words than "ball", not beside those that mean nearly the same."""
UNSURE = 0.05
"""Share of the name's prompts whose lower answers set no threshold: the step is not over there."""
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

    def has_gate(self, i: int) -> bool:
        """Whether token `i` has a gate."""
        return self.margins[i] >= self.least


def solve_gates(
    tokens: Sequence[GateToken],
    elsewhere: Elsewhere,
    mlp: MlpWeights,
    L2: Tensor | None = None,
) -> Gates:
    """A gate for every token that can be told from everything else.

    With C the second moments of what the detector receives at the captions, N those at the near
    misses and Z_j those at token j,

        g_i = (C + N + sum_j Z_j + hardest)^-1 mean(z_i),   scaled to mean(g_i z_i) = 1
        c = C^-1 mean(z),                                   scaled to mean(c z) = 1

    where the hardest are the scanned words and the captions' tokens that answer highest, found and
    added `ROUNDS` times.

    Args:
        tokens: One pair of neurons each.
        elsewhere: Where none may fire.
        mlp: Its pairs take the neurons that the others replace best. Files made apart take the
            same ones: from the sixteen next best, captions move three times as much.
        L2: `(hidden, hidden)` Cholesky factor of the second moments of what the writer usually
            receives; None is the identity.

    Returns:
        Edits in float64, of rank 2 n and 4 n at most for n gates; of rank 0 where none is open.

    Raises:
        IllPosedError: More tokens than there are idle neurons for.
    """
    W1 = mlp.W1.double()
    b1 = mlp.b1.double().cpu()
    W2 = mlp.W2.double()
    z = [token.z.double() for token in tokens]
    found = detect_tokens(tokens, elsewhere)
    margins = tuple(at.low - at.high for at in found)
    rows = [_step_rows(at.g, at.constant, at.high, at.low) for at in found]
    gates = Gates(no_edit(W1), no_edit(W2), margins)
    opened = [i for i in range(len(tokens)) if gates.has_gate(i)]
    if not opened:
        return gates

    P = torch.eye(len(b1), dtype=torch.float64) if L2 is None else inverse(L2)
    taken = assign_neurons(P, W2, len(opened))
    columns = []
    for at, i in enumerate(opened):
        pair = taken[2 * at : 2 * at + 2]
        sums = mlp.activation((z[i] @ rows[i].T + b1[pair]).float()).double()
        step = sums[:, 0] - sums[:, 1]
        column = step @ tokens[i].R.double() / step.square().sum()
        columns += [column, -column]
    answering = torch.cat([rows[i] for i in opened])
    detector, writer = replace_neurons(mlp, P, taken, answering, torch.stack(columns, 1))
    return Gates(detector, writer, gates.margins)


def detect_tokens(tokens: Sequence[GateToken], elsewhere: Elsewhere) -> list[Detection]:
    """How each token is told from the others and from what stands elsewhere, in float64."""
    z = [token.z.double() for token in tokens]
    near = elsewhere.near.double()
    captions = elsewhere.captions.double()
    C = _mean_outer(captions)
    C.diagonal().add_(RIDGE * C.diagonal().mean())
    constant = torch.linalg.solve(C, captions.mean(0))
    constant = constant / (captions @ constant).mean()
    metric = C + sum(_mean_outer(x) for x in z)
    if len(near):
        metric = metric + _mean_outer(near)

    found = []
    for i, token in enumerate(tokens):
        g, own_metric = _detector(z[i].mean(0), metric, [elsewhere.scanned, captions])
        wrong = [captions, near, elsewhere.scanned, *(x for j, x in enumerate(z) if j != i)]
        high = max(_highest(g, constant, x) for x in wrong)
        high = max(high, _highest(g, constant, token.others, share=COMPANY))
        answers = z[i] @ g / (z[i] @ constant).clamp_min(1e-3)
        low = float(answers.sort().values[int(UNSURE * len(answers))])
        found.append(Detection(g, constant, own_metric, high, low))
    return found


def assign_neurons(P: Tensor, W2: Tensor, gates: int, *, each: int = 2) -> list[int]:
    """So many neurons per gate: one after the other, the one whose loss costs least.

    P is the inverse of their second moments, so that |w_j|^2 / P_jj is what the loss of neuron j
    costs once the others have taken over what regression gives them (Optimal Brain Surgeon).

    Raises:
        IllPosedError: More than one in `SPARE` would be needed.
    """
    spare = W2.shape[1] // SPARE
    if each * gates > spare:
        raise IllPosedError(
            f"gates: {gates} tokens need {each * gates} neurons, {spare} of "
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


def _detector(mean: Tensor, metric: Tensor, wrong: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`(d,)` answers 1 at the mean, and as little as it can elsewhere; and the metric it has so."""
    g = _whitened(metric, mean)
    for _ in range(ROUNDS):
        for x in wrong:
            hardest = x[(x @ g.to(x)).topk(min(HARDEST, len(x))).indices].double()
            if len(x):
                metric = metric + HARDNESS * _mean_outer(hardest)
        g = _whitened(metric, mean)
    return g, metric


def _whitened(metric: Tensor, mean: Tensor) -> Tensor:
    g = torch.linalg.solve(metric, mean)
    return g / (g @ mean)


def _highest(g: Tensor, constant: Tensor, x: Tensor, *, share: float = 1.0) -> float:
    """The threshold above which nothing of `x` fires, or all but the last of a share of it."""
    if not len(x):
        return 0.0
    x = x.double()
    level = x @ constant
    answers = x @ g / level.clamp_min(1e-3)
    # where the constant is not one, no threshold holds: it must answer there as well
    answers = torch.where(level > 1e-3, answers, x @ g)
    return float(answers.sort().values[int(share * (len(x) - 1))])


def _step_rows(g: Tensor, constant: Tensor, high: float, low: float) -> Tensor:
    """`(2, d)` the rows of both neurons."""
    margin = max(low - high, 1e-3)
    slope = min(max(SLOPE, HEADROOM / (STEP_SPAN[0] * margin)), STEEPEST)
    levels = [high + share * margin for share in STEP_SPAN]
    return slope * torch.stack([g - level * constant for level in levels])


def no_edit(weight: Tensor) -> LowRank:
    """Of rank 0."""
    return LowRank(weight.new_zeros(weight.shape[0], 0), weight.new_zeros(0, weight.shape[1]))
