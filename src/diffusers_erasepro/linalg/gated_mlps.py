"""Gates in MLPs that are gated themselves: one idle neuron per token of a name.

Such an MLP is W2 (f(W1 z) * U z), as in T5 v1.1, Llama and Qwen (Shazeer, arXiv 2002.05202). Its
norms have no bias, so that nothing in z need be constant: on small encoders the best constant
direction has either sign, by word, and no threshold stands on that. But the MLP multiplies. The row
r of W1 is positive on the name and negative on the strangers that answer to the detector; the row u
of U answers to the name and little to anything. The product f(r z) (u z) is flat on the name,
silent on strangers, and second order small elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IllPosedError
from .constrained import inverse
from .gates import (
    COMPANY,
    UNSURE,
    Detection,
    Elsewhere,
    Gates,
    GateToken,
    assign_neurons,
    detect_tokens,
    no_edit,
)
from .low_rank import LowRank
from .neuron_pairs import Activation, MlpWeights, replace_neurons

ROUNDS = 2
"""How often each of the two rows is solved for what the other leaves."""
NEWTON_STEPS = 8
HARD_STRANGERS = 64
"""Positions elsewhere that the rows are solved against, per dimension: those that answer most."""
STRANGERS_READ = 16_384
FAINT = 0.02
"""Answer of the row of U, of 1 on the name, below which a stranger does not count in the row of W1.
In wide encoders that is nearly all of them."""
BELOW = 0.3
"""How far below 0 the row of W1 answers to strangers, where it answers 1 to the name. Further is
safer on strangers and less steady on the name."""
SILENCE = 0.01
"""Weight of a stranger in the row of W1, times the square of what the row of U answers there. Ten
times as much leaves half of the leak on words that were seen, and twice as much on others."""
LEAK_WEIGHT = 0.1
"""Weight of what leaks to strangers in the row of U, against how flat it is on the name."""
SMALL = 0.3
"""Weight of the metric in both rows. It draws what captions answer to the row of W1 to -`BELOW`,
and to the row of U to 0; a third of it leaks five times as much to captions."""
LEAK = 1e-4
"""What the activation returns so far below 0, of what it returns as far above. SiLU dips to -0.28,
and needs a row twice as long as GELU's."""
FARTHEST = 40.0
"""An activation that is not silent so far below 0 never is."""
HEIGHT = 4.0
"""Of the product on the name. Larger writes with smaller columns."""
LEAST_CONTRAST = 0.5
"""Least height on the name less the highest elsewhere, of 1. Below, a token gets no gate."""


@dataclass(frozen=True)
class GatedMlpWeights(MlpWeights):
    """Two linears side by side, the activation behind the first, their product and a third."""

    U: Tensor
    """`(hidden, d)` the factor: its output multiplies the activation's."""
    bU: Tensor
    """`(hidden,)`"""


@dataclass(frozen=True)
class Product:
    """What a neuron of a gated MLP hands on: f(row z) (factor z)."""

    row: Tensor
    """`(d,)` of W1."""
    factor: Tensor
    """`(d,)` of U."""
    activation: Activation

    def __call__(self, z: Tensor) -> Tensor:
        """`(n,)` at `z (n, d)`."""
        return self.first(z) * (z @ self.factor.to(z))

    def first(self, z: Tensor) -> Tensor:
        """`(n,)` what the activation returns."""
        return self.activation((z @ self.row.to(z)).float()).to(z)


@dataclass(frozen=True)
class ProductGate:
    """A token's neuron, and how far it tells the token from everything else."""

    product: Product
    contrast: float
    """The lowest height on the name less the highest elsewhere, where 1 is the mean on the name."""


@dataclass(frozen=True)
class Hinge:
    """Positions that shall answer at most -`BELOW`."""

    strangers: Tensor
    """`(m, d)`"""
    weights: Tensor
    """`(m,)` of each one's squared excess."""


def solve_gated_mlp(
    tokens: Sequence[GateToken],
    elsewhere: Elsewhere,
    mlp: GatedMlpWeights,
    L2: Tensor | None = None,
    found: Sequence[ProductGate] | None = None,
) -> Gates:
    """A gate for every token that can be told from everything else.

    With M the metric of `detect_tokens`, s the strangers, and u the detector to begin with,

        r = argmin mean((r z - 1)^2) + SILENCE sum((u s)^2 (BELOW + r s)_+^2)
                   + SMALL (r'M r + 2 BELOW r m)
        u = argmin mean((p u z - 1)^2) + LEAK_WEIGHT sum((p u s)^2) + SMALL mean(p^2) u'M u

    in turn, where z are the name's positions, m is the mean at the captions, and p is the
    activation of a multiple of r that makes it silent at -BELOW. The first is a squared hinge,
    solved by Newton's method.

    Args:
        tokens: One neuron each.
        elsewhere: Where none may fire.
        mlp: Gives the neurons that its others replace best. What their biases add is not counted.
        L2: `(hidden, hidden)` Cholesky factor of the second moments of what the writer usually
            receives; None is the identity.
        found: Their neurons, if `detect_products` has solved for them already.

    Returns:
        Edits in float64, of rank n, n and 2 n at most for n gates; of rank 0 where none is open.

    Raises:
        IllPosedError: More tokens than there are idle neurons for, or an activation that is not
            silent below 0.
    """
    W1 = mlp.W1.double()
    W2 = mlp.W2.double()
    U = mlp.U.double()
    if found is None:
        found = detect_products(tokens, elsewhere, mlp.activation)
    products = [gate.product for gate in found]
    margins = tuple(gate.contrast for gate in found)
    gates = Gates(no_edit(W1), no_edit(W2), margins, no_edit(U), LEAST_CONTRAST)
    opened = [i for i in range(len(tokens)) if gates.has_gate(i)]
    if not opened:
        return gates

    P = torch.eye(len(W1), dtype=torch.float64) if L2 is None else inverse(L2)
    taken = assign_neurons(P, W2, len(opened), each=1)
    columns = []
    for i in opened:
        heights = products[i](tokens[i].z.double())
        columns.append(heights @ tokens[i].R.double() / heights.square().sum())
    rows = torch.stack([products[i].row for i in opened])
    factors = torch.stack([products[i].factor for i in opened])
    detector, writer = replace_neurons(mlp, P, taken, rows, torch.stack(columns, 1))
    factor = LowRank(detector.B, factors - U[taken])
    picks = torch.eye(len(W1), dtype=torch.float64)[taken]
    written = LowRank(torch.stack(columns, 1), picks)
    return Gates(detector, writer, gates.margins, factor, LEAST_CONTRAST, written)


def detect_products(
    tokens: Sequence[GateToken], elsewhere: Elsewhere, activation: Activation
) -> list[ProductGate]:
    """The neuron that tells each token from the others and from what stands elsewhere.

    Raises:
        IllPosedError: The activation is not silent below 0.
    """
    found = []
    for i, detection in enumerate(detect_tokens(tokens, elsewhere)):
        others = [token.z for j, token in enumerate(tokens) if j != i]
        wrong = [elsewhere.captions, elsewhere.near, elsewhere.scanned, *others]
        made = _solve_product(tokens[i], wrong, detection, activation)
        found.append(ProductGate(made, _contrast(made, tokens[i], wrong)))
    return found


def silent_below(activation: Activation) -> float:
    """How far below 0 the activation returns `LEAK` of what it returns as far above.

    Raises:
        IllPosedError: It never does.
    """
    x = torch.arange(0.25, FARTHEST, 0.25, dtype=torch.float32)
    loud = activation(-x).abs() > LEAK * activation(x).abs()
    last = int(loud.nonzero().max()) if loud.any() else -1
    if last + 1 == len(x):
        raise IllPosedError(
            f"gates: the activation returns {float(activation(-x[-1:])):.2g} at {-FARTHEST:g}, and "
            "is never silent; edit encoder blocks, such as layers=(0, -1)"
        )
    return float(x[last + 1])


def _solve_product(
    token: GateToken, wrong: Sequence[Tensor], found: Detection, activation: Activation
) -> Product:
    """Both rows of a token's neuron; what is wrong begins with the captions."""
    z = token.z.double()
    usual = wrong[0].double().mean(0)
    steepness = silent_below(activation) / BELOW
    row = found.g
    factor = found.g
    for _ in range(ROUNDS):
        strangers = _strangers([*wrong, token.others], [row, factor])
        answers = strangers @ factor / (z @ factor).mean()
        counting = answers.abs() > FAINT
        hinge = Hinge(strangers[counting], SILENCE * answers[counting].square())
        row = _row_of_detector(z, hinge, found.metric, usual, row)
        made = Product(steepness * row, factor, activation)
        factor = _row_of_factor(z, strangers, made, found.metric)
    return Product(steepness * row, factor, activation)


def _strangers(wrong: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """`(m, d)` the positions that answer most to any of the rows, either way."""
    count = min(HARD_STRANGERS * len(rows[0]), STRANGERS_READ)
    found = []
    for x in wrong:
        answers = torch.stack([(x @ row.to(x)).abs() / row.norm().to(x) for row in rows])
        found.append(x[answers.amax(0).topk(min(count, len(x))).indices])
    every = torch.cat(found).double()
    answers = torch.stack([(every @ row).abs() / row.norm() for row in rows])
    return every[answers.amax(0).topk(min(count, len(every))).indices]


def _row_of_detector(z: Tensor, hinge: Hinge, metric: Tensor, usual: Tensor, row: Tensor) -> Tensor:
    """`(d,)` 1 on the name, and below 0 on strangers as far as they weigh.

    The minimum is exact once the strangers above -`BELOW` are the same twice.

    Args:
        z: The name's positions.
        hinge: The strangers.
        metric: Second moments elsewhere.
        usual: `(d,)` the mean at captions.
        row: To begin with.
    """
    base = z.T @ z / len(z) + SMALL * metric
    aim = z.mean(0) - SMALL * BELOW * usual
    before: Tensor | None = None
    for _ in range(NEWTON_STEPS):
        above = hinge.strangers @ row > -BELOW
        if before is not None and torch.equal(above, before):
            break
        before = above
        some = hinge.strangers[above]
        weighted = hinge.weights[above][:, None] * some
        row = torch.linalg.solve(base + weighted.T @ some, aim - BELOW * weighted.sum(0))
    return row


def _row_of_factor(z: Tensor, strangers: Tensor, made: Product, metric: Tensor) -> Tensor:
    """`(d,)` makes the product `HEIGHT` on the name, and small where the other row leaks."""
    p = made.first(z)
    inside = p[:, None] * z
    leaking = made.first(strangers)
    some = leaking.abs() > LEAK * p.abs().mean()
    leak = leaking[some][:, None] * strangers[some]
    moments = inside.T @ inside / len(z) + LEAK_WEIGHT * (leak.T @ leak)
    moments = moments + SMALL * p.square().mean() * metric
    factor = torch.linalg.solve(moments, inside.mean(0))
    return HEIGHT * factor / (inside @ factor).mean()


def _contrast(made: Product, token: GateToken, wrong: Sequence[Tensor]) -> float:
    """The lowest height on the name less the highest elsewhere, where 1 is the mean on the name.

    At least -1: where the name is silenced with the strangers, the mean on it says nothing.
    """
    heights = made(token.z.double()).sort().values / HEIGHT
    low = float(heights[int(UNSURE * len(heights))])
    high = 0.0
    for x in wrong:
        if len(x):
            high = max(high, float(made(x).abs().max()) / HEIGHT)
    if len(token.others):
        beside = made(token.others).abs().sort().values / HEIGHT
        high = max(high, float(beside[int(COMPANY * (len(beside) - 1))]))
    return max(low - high, -1.0)
