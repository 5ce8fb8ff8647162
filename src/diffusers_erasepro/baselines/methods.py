"""Peers of `erase`: UCE, RECE, SPEED and the paper's formula read literally; the same call, the same adapter out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import NAN, LayerReport, Report, frobenius
from ..config.options import READERS, Foreign, number
from ..config.spec import Concept, ErasureSpec
from ..erasure.erase import erase
from ..erasure.layerwise import final_states, working
from ..erasure.residuals import aligned_states, read_residual
from ..errors import ConceptSpecError, UnknownFamilyError
from ..families.encoders import blocks_of, file_name
from ..families.pipelines import component, family_of, reader_paths
from ..families.types import LAST, PipelineFamily
from ..linalg.low_rank import LowRank, compress
from ..modules.fingerprint import fingerprints
from ..modules.storage import weight_of
from ..patching.weights import unedited
from ..prompts.pairs import ALIGNMENTS, rows_to_measure, rows_to_solve, token_ids

P = TypeVar("P", bound="Peer")

WORD = ("{}",)
COMPRESSION = 1e-4
"""Largest relative error of an edit's low-rank factors."""


@dataclass(frozen=True)
class Reading:
    """What the K/V linears read of a spec, in float64, and the linears themselves. All linears read the same states."""

    encoder: Any
    tokenizer: Any
    targets: tuple[str, ...]
    anchors: tuple[str, ...]
    captions: tuple[str, ...]
    weights: Mapping[str, Tensor]
    """Module name -> W `(d_out, d)`."""

    def states(self, texts: Sequence[str]) -> Tensor:
        """`(n, length, d)` states of whole texts."""
        return final_states(self.encoder, token_ids(self.tokenizer, texts)).cpu().double()

    def last(self, texts: Sequence[str]) -> Tensor:
        """`(d, n)` states at the last token before EOS; at BOS for the empty text."""
        limit = self.tokenizer.model_max_length
        at = [min(len(self.tokenizer(text).input_ids), limit) - 2 for text in texts]
        return self.states(texts)[torch.arange(len(texts)), torch.tensor(at, dtype=torch.long)].T

    def every(self, texts: Sequence[str]) -> Tensor:
        """`(d, n * length)` states at all positions."""
        return self.states(texts).flatten(0, 1).T

    @cached_property
    def gram(self) -> Tensor:
        """`(d, d)` sum of W' W."""
        return sum((W.T @ W for W in self.weights.values()), torch.zeros(()))


@dataclass(frozen=True)
class Peer:
    """The settings of a peer, which the adapter records, and its closed form."""

    templates: Sequence[str] = WORD
    """Texts with one `{}`; each target in each of them is erased."""
    preserve: Sequence[str] | None = None
    """Texts to keep; None takes the spec's preserve captions."""

    name: ClassVar[str]

    @classmethod
    def of(cls: type[P], settings: Mapping[str, Any]) -> P:
        """Settings from keywords; an unknown one is an error that lists the known."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise ConceptSpecError(
                f"{cls.name} has no setting {unknown[0]!r} (known: {', '.join(known)})"
            )
        return cls(**settings)

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.type == "float":
                number(f.name, getattr(self, f.name))
        if not self.templates or any(t.count("{}") != 1 for t in self.templates):
            raise ConceptSpecError(
                f"templates of {self.name} need exactly one '{{}}' each, got {self.templates!r}"
            )

    def edits(self, reading: Reading) -> dict[str, LowRank]:
        """Module name -> the change of its weight."""
        raise NotImplementedError


@dataclass(frozen=True)
class UCE(Peer):
    """Unified Concept Editing (Gandikota et al., WACV 2024, arXiv 2308.14761)."""

    erase_scale: float = 1.0
    preserve_scale: float = 1.0
    lamb: float = 0.5
    name: ClassVar[str] = "uce"

    def map(self, reading: Reading) -> LowRank:
        """F of  W* = W (I + F):  with the Gram matrix  S = e X X' + p P P' + lamb I  it is  e (Y - X) X' S^-1."""
        X, Y, K = (
            reading.last(texts) for texts in (reading.targets, reading.anchors, reading.captions)
        )
        return _least_squares(X, Y, K, self.erase_scale, self.preserve_scale, self.lamb)

    def edits(self, reading: Reading) -> dict[str, LowRank]:
        return _through(reading.weights, self.map(reading))


@dataclass(frozen=True)
class RECE(Peer):
    """Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024, arXiv 2407.12383)."""

    rounds: int = 1
    regulariser: float = 1e-3
    erase_scale: float = 1.0
    preserve_scale: float = 0.1
    lamb: float = 0.1
    start: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the UCE edit it starts from, where they are not UCE's own."""
    name: ClassVar[str] = "rece"

    def edits(self, reading: Reading) -> dict[str, LowRank]:
        start = UCE.of(
            {"templates": self.templates, "preserve": self.preserve} | dict(self.start)
        ).map(reading)
        M = identity = torch.eye(len(reading.gram), dtype=torch.float64)
        M = M + start.dense()
        X, Y, K = (
            reading.every(texts)
            for texts in (reading.targets, reading.anchors, ("", *reading.captions))
        )
        for _ in range(self.rounds):
            revived = inverse_map(reading.gram, M, self.regulariser) @ X
            M = (
                M
                + M
                @ _least_squares(
                    revived, Y, K, self.erase_scale, self.preserve_scale, self.lamb
                ).dense()
            )
        return _through(reading.weights, LowRank(M - identity, identity))


@dataclass(frozen=True)
class SPEED(Peer):
    """SPEED (Li et al., ICLR 2026, arXiv 2503.07392): the change stays in the null space of what is kept."""

    threshold: float = 0.1
    augment: int = 10
    """Perturbed copies of each kept text that the edit would move more than the average; 0 keeps every text as it is."""
    filter: bool = True
    """Keep only texts that the edit would move more than the average."""
    retain_scale: float = 1.0
    lamb: float = 0.0
    readers: str = "v"
    """Which linears are edited: "v" (its authors' choice), "k" or "kv"."""
    seed: int = 0
    name: ClassVar[str] = "speed"

    def edits(self, reading: Reading) -> dict[str, LowRank]:
        X, Y = reading.last(reading.targets), reading.last(reading.anchors)
        K = reading.last(reading.captions) if reading.captions else reading.every([""])[:, 1:]
        E = self._invariants(reading)
        noise = torch.Generator().manual_seed(self.seed)
        weights = {
            path: W for path, W in reading.weights.items() if path.endswith(tuple(self.readers))
        }
        return {path: self._edit(W, X, Y, K, E, noise) for path, W in weights.items()}

    def _edit(
        self, W: Tensor, X: Tensor, Y: Tensor, K: Tensor, E: Tensor, noise: torch.Generator
    ) -> LowRank:
        """With  T = X X'/n,  P onto the eigenvectors of K K'/m below the threshold  and  M = (T P + s I)^-1:

        D = W (Y - X) X'/n  P (I - M E (E' P M E + lamb I)^-1 E' P) M
        """
        n, identity = X.shape[1], torch.eye(len(X), dtype=torch.float64)
        T = X @ X.T / n
        naive = W @ (Y - X) @ (torch.linalg.solve(identity + T, X / n)).T
        K = self._refined(K, W, naive, noise)
        size, U = torch.linalg.eigh(K @ K.T / K.shape[1])
        free = U[:, size < self.threshold]
        P = free @ free.T
        M = torch.linalg.inv(T @ P + self.retain_scale * identity)
        inner = E.T @ P @ M @ E + self.lamb * torch.eye(E.shape[1], dtype=torch.float64)
        return LowRank(
            W @ (Y - X) / n, X.T @ P @ (identity - M @ E @ torch.linalg.pinv(inner) @ E.T @ P) @ M
        )

    def _refined(self, K: Tensor, W: Tensor, naive: Tensor, noise: torch.Generator) -> Tensor:
        """The kept texts that the edit would move most, and perturbed copies along W's weakest direction."""
        moved = (naive @ K).norm(dim=0)
        if self.augment and self.filter:
            K = K[:, moved > moved.mean()]
        if not self.augment:
            return K
        weakest = (
            torch.linalg.svd(W)[2][-1]
            if W.shape[0] >= W.shape[1]
            else torch.linalg.svd(W, full_matrices=False)[2][-1]
        )
        steps = torch.randn(self.augment * K.shape[1], generator=noise, dtype=torch.float64)
        copies = K.repeat(1, self.augment) + weakest[:, None] * steps
        moved = (naive @ copies).norm(dim=0)
        return torch.cat([K, copies[:, moved > moved.mean()]], 1)

    def _invariants(self, reading: Reading) -> Tensor:
        """`(d, 4)`: BOS and three cluster centres of the empty prompt's other states."""
        empty = reading.every([""])
        centres, _ = kmeans2(empty[:, 1:].T.numpy(), 3, minit="++", seed=self.seed)
        return torch.cat([empty[:, :1], torch.from_numpy(centres).T], 1)


def inverse_map(gram: Tensor, M: Tensor, regulariser: float) -> Tensor:
    """`(d, d)` map of states that makes edited linears W M answer as the unedited ones did (RECE, equation 7).

    argmin over Z of  sum ||W M Z - W||^2 + regulariser ||Z||^2  =  (M' G M + regulariser I)^-1 M' G,  G = sum W' W.
    """
    return torch.linalg.solve(
        M.T @ gram @ M + regulariser * torch.eye(len(M), dtype=M.dtype), M.T @ gram
    )


def _least_squares(
    X: Tensor, Y: Tensor, K: Tensor, erase: float, preserve: float, lamb: float
) -> LowRank:
    """F of  argmin over W*  e ||W* X - W Y||^2 + p ||(W* - W) K||^2 + lamb ||W* - W||^2  =  W (I + F)."""
    S = erase * X @ X.T + preserve * K @ K.T + lamb * torch.eye(len(X), dtype=X.dtype)
    return LowRank(erase * (Y - X), torch.linalg.solve(S, X).T)


def _through(weights: Mapping[str, Tensor], change: LowRank) -> dict[str, LowRank]:
    return {path: LowRank(W @ change.B, change.A) for path, W in weights.items()}


# ------------------------------------------------------------------------------------------------ the calls


def uce(pipe: Any, spec: ErasureSpec | Concept, **settings: Any) -> ErasureAdapter:
    """UCE: every K and V answers the target's last token as its anchor's, by ridge regression.

    Args:
        pipe: As for `erase`; it stays as it is, bit for bit.
        spec: What to erase; synonyms count as targets.
        templates: Texts with one `{}`. Default the bare words, as in the official code; its `expand_prompts` adds five.
        preserve: Texts to keep at their last token. Default the spec's preserve captions.
        erase_scale, preserve_scale, lamb: Weights of the three terms. Defaults 1, 1, .5 as in the official code.

    Returns:
        An adapter without keys: beside others it is added, not solved again.
    """
    return run(UCE.of(settings), pipe, spec)


def rece(pipe: Any, spec: ErasureSpec | Concept, **settings: Any) -> ErasureAdapter:
    """RECE: after UCE, the states that would revive the target are found in closed form and erased too, in rounds.

    Args:
        pipe, spec, templates, preserve: As for `uce`; kept texts count at all positions, and the empty one is among them.
        rounds: How often. Its authors: 1 for styles and objects, 3 for nudity.
        regulariser: Of the search. Its authors: 1e-3 for styles and hard objects, .1 for nudity and easy objects.
        erase_scale, preserve_scale, lamb: Weights of the three terms. Defaults 1, .1, .1 as in the official code.
        start: Settings of the UCE edit it starts from.
    """
    return run(RECE.of(settings), pipe, spec)


def speed(pipe: Any, spec: ErasureSpec | Concept, **settings: Any) -> ErasureAdapter:
    """SPEED: UCE's aim, but only along directions that the kept texts do not use.

    Args:
        pipe, spec, templates, preserve: As for `uce`.
        threshold: Eigenvalues of the kept texts' second moment below it count as unused. Larger erases more and keeps
            less. Default .1, for the scale of CLIP-L's states; other encoders want another.
        augment: Perturbed copies per kept text (10); 0 neither perturbs nor filters.
        filter: Whether texts that the edit would hardly move are left out; its authors turn it off for many concepts.
        retain_scale: Weight of small changes (1; .05 for many concepts).
        lamb: Ridge of the empty prompt's invariance (0; .5 for nudity).
        readers: "v" (its authors' choice), "k" or "kv".
        seed: Of the perturbations and of the clustering.
    """
    return run(SPEED.of(settings), pipe, spec)


def literal(pipe: Any, spec: ErasureSpec | Concept, **options: Any) -> ErasureAdapter:
    """The paper's formula read literally: every linear of the text encoder, then every K and V, identity metric, no soft prompt.

    Args:
        pipe, spec: As for `erase`.
        options: Options of `erase` that shall differ: `metric`, `layers`, `alignment`, ...
    """
    encoder = component(pipe, family_of(pipe).encoders[0][0])
    every = (*range(len(blocks_of(encoder))), READERS)
    reading: dict[str, Any] = {
        "variant": "linear",
        "layers": every,
        "metric": "identity",
        "alignment": "last_subject",
        "soft_weight": 0.0,
    }
    return erase(pipe, spec, **(reading | options))


METHODS: dict[str, Callable[..., ErasureAdapter]] = {
    "erasepro": erase,
    "uce": uce,
    "rece": rece,
    "speed": speed,
    "literal": literal,
}


def method_named(name: str) -> Callable[..., ErasureAdapter]:
    """The method of that name.

    Raises:
        ConceptSpecError: There is none.
    """
    if name not in METHODS:
        raise ConceptSpecError(f"no method {name!r} (known: {', '.join(METHODS)})")
    return METHODS[name]


# ------------------------------------------------------------------------------------------------ adapters


def run(peer: Peer, pipe: Any, spec: ErasureSpec | Concept) -> ErasureAdapter:
    """The adapter of a peer's closed form, measured as ours are. `pipe` stays as it is."""
    began = time.perf_counter()
    spec = ErasureSpec((spec,)) if isinstance(spec, Concept) else spec
    family = family_of(pipe)
    encoder_name, tokenizer_name, _ = family.encoders[0]
    if len(family.encoders) > 1:
        raise UnknownFamilyError(
            f"{peer.name} knows pipelines with one text encoder; {type(pipe).__name__} has several"
        )
    root = component(pipe, family.denoiser)
    pairs = [
        (t.replace("{}", w), t.replace("{}", c.anchor))
        for c in spec.concepts
        for w in c.words
        for t in peer.templates
    ]
    targets, anchors = zip(*pairs, strict=True)
    with unedited(pipe), torch.no_grad(), working(component(pipe, encoder_name)) as encoder:
        weights = {
            path: weight_of(root, path).detach().double().cpu()
            for path in reader_paths(root, family)
        }
        captions = spec.preserve_captions() if peer.preserve is None else tuple(peer.preserve)
        reading = Reading(
            encoder, getattr(pipe, tokenizer_name), targets, anchors, captions, weights
        )
        edits = {family.denoiser: peer.edits(reading)}
        adapter = assembled(pipe, family, spec, Foreign(peer.name, asdict(peer)), encoder, edits)
    return replace(adapter, report=replace(adapter.report, seconds=time.perf_counter() - began))


def assembled(
    pipe: Any,
    family: PipelineFamily,
    spec: ErasureSpec,
    made_by: Foreign,
    encoder: Any,
    edits: Mapping[str, Mapping[str, LowRank]],
    *,
    error: float = COMPRESSION,
) -> ErasureAdapter:
    """The adapter of finished edits, compressed and measured as ours are.

    Args:
        pipe, family, spec: Where they belong and what they erase.
        made_by: Recorded as the adapter's options.
        encoder: The text encoder to measure with, unedited.
        edits: Component -> module name -> change of its weight.
        error: Largest relative error of the low-rank factors.
    """
    encoder_name, tokenizer_name, _ = family.encoders[0]
    small = {
        part: {path: compress(edit, error) for path, edit in paths.items()}
        for part, paths in edits.items()
    }
    weights = {
        (part, path): weight_of(component(pipe, part), path).detach()
        for part in small
        for path in small[part]
    }
    alignment, tokenizer = ALIGNMENTS[made_by.alignment], getattr(pipe, tokenizer_name)
    rows = rows_to_solve(spec.concepts, tokenizer, alignment, soft_budget=0)
    rows |= rows_to_measure(spec.concepts, spec.preserve_captions(), tokenizer, alignment)
    in_encoder = {path: factors for path, (factors, _) in small.get(encoder_name, {}).items()}
    states = {
        kind: aligned_states(encoder, rows[kind], in_encoder)
        for kind in ("exact", "held_out", "kept")
    }
    of_denoiser, readers = (
        small.get(family.denoiser, {}),
        reader_paths(component(pipe, family.denoiser), family),
    )
    edited = [
        (weights[family.denoiser, path], of_denoiser[path][0])
        for path in readers
        if path in of_denoiser
    ]
    residual = {kind: read_residual(*pair, edited) for kind, pair in states.items()}
    unseen = residual["held_out"]
    layers = tuple(
        LayerReport(
            file_name(part, path),
            factors.rank,
            frobenius(factors) / float(weights[part, path].double().norm()),
            condition=NAN,
            gap=NAN,
            constraints=0,
            dropped=0,
            compression=left,
        )
        for part, paths in small.items()
        for path, (factors, left) in paths.items()
    )
    return ErasureAdapter(
        spec,
        made_by,
        base={part: fingerprints(component(pipe, part), {}) for part in small},
        edits={
            file_name(part, path): f.to(torch.float32)
            for part, paths in small.items()
            for path, (f, _) in paths.items()
        },
        keys={},
        goals={f"{encoder_name}.{LAST}": states["exact"][1].float().cpu()},
        report=Report(
            float(residual["exact"].max()),
            float(unseen.max()) if len(unseen) else NAN,
            float(residual["kept"].mean()),
            layers,
            held_out_mean=float(unseen.mean()) if len(unseen) else NAN,
        ),
    )
