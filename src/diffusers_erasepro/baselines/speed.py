"""SPEED (Li et al., ICLR 2026, arXiv 2503.07392): changes in the null space of what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..config.spec import Concept, ErasureSpec
from ..linalg.low_rank import LowRank
from .closed_form import ClosedForm, Problem, edit_cross_attention


def speed(pipe: Any, spec: ErasureSpec | Concept, **settings: Any) -> ErasureAdapter:
    """SPEED: UCE's aim, but only along directions that the kept texts do not use.

    Args:
        pipe: As for `erase`; it stays as it is, bit for bit.
        spec: What to erase; synonyms count as targets.
        templates: As for `uce`.
        preserve: As for `uce`.
        threshold: Eigenvalues of the kept texts' second moment below it count as unused. Larger
            erases more and keeps less. Default 0.1, for the scale of CLIP-L's states; other
            encoders want another.
        augment: Perturbed copies per kept text (10); 0 neither perturbs nor filters.
        filter: Whether texts that the edit would hardly move are left out; its authors turn it
            off for many concepts.
        retain_scale: Weight of small changes (1; 0.05 for many concepts).
        lamb: Ridge of the empty prompt's invariance (0; 0.5 for nudity).
        readers: "v" (its authors' choice), "k" or "kv".
        seed: Of the perturbations and of the clustering.

    Returns:
        An adapter without keys: beside others it is added, not solved again.

    Raises:
        ConceptSpecError: A setting is not known or out of range.
        UnknownFamilyError: The pipeline has several text encoders.
    """
    return edit_cross_attention(SPEED.of(settings), pipe, spec)


@dataclass(frozen=True)
class SPEED(ClosedForm):
    """The settings of SPEED and its closed form."""

    threshold: float = 0.1
    augment: int = 10
    """Perturbed copies of each kept text that the edit would move more than the average; 0 keeps
    every text as it is."""
    filter: bool = True
    """Keep only texts that the edit would move more than the average."""
    retain_scale: float = 1.0
    lamb: float = 0.0
    readers: str = "v"
    """Which linears are edited: "v" (its authors' choice), "k" or "kv"."""
    seed: int = 0
    name: ClassVar[str] = "speed"

    def edits(self, problem: Problem) -> dict[str, LowRank]:
        X = problem.last_states(problem.targets)
        Y = problem.last_states(problem.anchors)
        if problem.captions:
            K = problem.last_states(problem.captions)
        else:
            K = problem.all_states([""])[:, 1:]
        E = self._empty_prompt(problem)
        noise = torch.Generator().manual_seed(self.seed)
        edited = tuple(self.readers)
        found = {}
        for path, W in problem.weights.items():
            if path.endswith(edited):
                found[path] = self._solve(W, X, Y, self._select_kept(K, W, X, Y, noise), E)
        return found

    def _solve(self, W: Tensor, X: Tensor, Y: Tensor, K: Tensor, E: Tensor) -> LowRank:
        """D = W (Y - X) X'/n  P (I - M E (E' P M E + lamb I)^-1 E' P) M,  the change of W.

        T = X X'/n,  P projects onto the eigenvectors of K K'/m whose eigenvalue is below the
        threshold,  M = (T P + s I)^-1.

        Args:
            W: `(d_out, d)` weight.
            X: `(d, n)` states of the targets.
            Y: `(d, n)` states of their anchors.
            K: `(d, m)` states to keep.
            E: `(d, 4)` states of the empty prompt, which do not change at all.
        """
        n = X.shape[1]
        identity = torch.eye(len(X), dtype=torch.float64)
        T = X @ X.T / n
        size, U = torch.linalg.eigh(K @ K.T / K.shape[1])
        unused = U[:, size < self.threshold]
        P = unused @ unused.T
        M = torch.linalg.inv(T @ P + self.retain_scale * identity)
        inner = E.T @ P @ M @ E + self.lamb * torch.eye(E.shape[1], dtype=torch.float64)
        invariant = identity - M @ E @ torch.linalg.pinv(inner) @ E.T @ P
        return LowRank(W @ (Y - X) / n, X.T @ P @ invariant @ M)

    def _select_kept(
        self, K: Tensor, W: Tensor, X: Tensor, Y: Tensor, noise: torch.Generator
    ) -> Tensor:
        """The kept states that an edit without them would move most, and perturbed copies.

        The copies are moved along W's weakest direction.
        """
        n = X.shape[1]
        identity = torch.eye(len(X), dtype=torch.float64)
        unconstrained = W @ (Y - X) @ (torch.linalg.solve(identity + X @ X.T / n, X / n)).T
        moved = (unconstrained @ K).norm(dim=0)
        if self.augment and self.filter:
            K = K[:, moved > moved.mean()]
        if not self.augment:
            return K
        steps = torch.randn(self.augment * K.shape[1], generator=noise, dtype=torch.float64)
        copies = K.repeat(1, self.augment) + _weakest_direction(W)[:, None] * steps
        moved = (unconstrained @ copies).norm(dim=0)
        return torch.cat([K, copies[:, moved > moved.mean()]], 1)

    def _empty_prompt(self, problem: Problem) -> Tensor:
        """BOS and three cluster centres of the empty prompt's other states, `(d, 4)`."""
        empty = problem.all_states([""])
        centres, _ = kmeans2(empty[:, 1:].T.numpy(), 3, minit="++", seed=self.seed)
        return torch.cat([empty[:, :1], torch.from_numpy(centres).T], 1)


def _weakest_direction(W: Tensor) -> Tensor:
    """The right singular vector `(d,)` of the smallest singular value."""
    wide = W.shape[0] < W.shape[1]
    return torch.linalg.svd(W, full_matrices=not wide)[2][-1]
