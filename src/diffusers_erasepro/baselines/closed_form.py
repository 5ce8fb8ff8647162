"""What closed-form edits of cross-attention share: the problem, the settings, the call."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..config.options import OtherMethod, check_number
from ..config.spec import Concept, ErasureSpec
from ..config.words import count_noun
from ..erasure.auto_anchor import with_anchors
from ..erasure.float32 import in_float32
from ..erasure.request import below_loras, level_of_caller
from ..erasure.states import final_states
from ..errors import ConceptSpecError, UnknownFamilyError
from ..families.pipelines import family_of, get_component, reader_paths
from ..linalg.low_rank import LowRank
from ..modules.storage import weight_of
from ..patching.weights import unedited
from ..prompts.learned_tokens import expand, expansions_of
from ..prompts.tokens import quiet_cuts, text_paths, token_ids
from .assembly import assemble_adapter

BARE_WORD = ("{}",)


@dataclass(frozen=True)
class Problem:
    """What a closed form starts from: texts, their states and the K/V linears, in float64.

    All linears read the same states, the text encoder's last.
    """

    encoder: Any
    tokenizer: Any
    targets: tuple[str, ...]
    anchors: tuple[str, ...]
    """One per target."""
    captions: tuple[str, ...]
    """Texts to keep."""
    weights: Mapping[str, Tensor]
    """Module name -> W `(d_out, d)`."""

    def states(self, texts: Sequence[str]) -> Tensor:
        """States of whole texts, `(n, length, d)`."""
        return final_states(self.encoder, token_ids(self.tokenizer, texts)).cpu().double()

    def last_states(self, texts: Sequence[str]) -> Tensor:
        """States at the last token before EOS, `(d, n)`; at BOS for the empty text."""
        limit = self.tokenizer.model_max_length
        last = [min(length, limit) - 2 for length in count_tokens(self.tokenizer, texts)]
        positions = torch.tensor(last, dtype=torch.long)
        return self.states(texts)[torch.arange(len(texts)), positions].T

    def all_states(self, texts: Sequence[str]) -> Tensor:
        """States at every position, `(d, n * length)`."""
        return self.states(texts).flatten(0, 1).T

    @cached_property
    def gram(self) -> Tensor:
        """Sum of W' W over the linears, `(d, d)`."""
        return sum((W.T @ W for W in self.weights.values()), torch.zeros((), dtype=torch.float64))


@dataclass(frozen=True)
class ClosedForm:
    """The settings of a method, which its adapters record, and the edits it solves for."""

    templates: Sequence[str] = BARE_WORD
    """Texts with one `{}`; each target in each of them is erased."""
    preserve: Sequence[str] | None = None
    """Texts to keep; None takes the spec's preserve captions."""

    name: ClassVar[str]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Settings from keywords.

        Raises:
            ConceptSpecError: A keyword is not known, or a value is out of range.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise ConceptSpecError(
                f"{cls.name} has no setting {unknown[0]!r} (known: {', '.join(known)})"
            )
        return cls(**settings)

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.type == "float":
                check_number(f.name, getattr(self, f.name))
        if not self.templates or any(t.count("{}") != 1 for t in self.templates):
            raise ConceptSpecError(
                f"templates of {self.name} need exactly one '{{}}' each, got {self.templates!r}"
            )

    def edits(self, problem: Problem) -> dict[str, LowRank]:
        """Module name -> the change of its weight."""
        raise NotImplementedError


def edit_cross_attention(
    method: ClosedForm, pipe: Any, spec: ErasureSpec | Concept
) -> ErasureAdapter:
    """The adapter of a closed form, measured as those of `erase` are.

    Args:
        method: The closed form with its settings.
        pipe: A pipeline with one text encoder; it stays as it is, bit for bit.
        spec: What to erase; synonyms count as targets.

    Raises:
        ConceptSpecError: As from `erase`.
        UnknownFamilyError: The pipeline has several text encoders.
    """
    began = time.perf_counter()
    spec = ErasureSpec((spec,)) if isinstance(spec, Concept) else spec
    family = family_of(pipe)
    use = text_paths(pipe)[0].use
    if len(family.encoders) > 1:
        raise UnknownFamilyError(
            f"{method.name} knows pipelines whose class has one text encoder; "
            f"{type(pipe).__name__} takes {' and '.join(u.encoder for u in family.encoders)}"
        )
    denoiser = get_component(pipe, family.denoiser)
    with below_loras(pipe), unedited(pipe), torch.no_grad():
        spec = with_anchors(pipe, spec, None)
    targets, anchors = target_texts(spec, method.templates)
    captions = spec.preserve_captions() if method.preserve is None else tuple(method.preserve)
    with (
        below_loras(pipe),
        unedited(pipe),
        torch.no_grad(),
        in_float32(get_component(pipe, use.encoder)) as encoder,
    ):
        weights = {
            path: weight_of(denoiser, path).detach().double().cpu()
            for path in reader_paths(denoiser, family)
        }
        tokenizer = getattr(pipe, use.tokenizer)
        problem = Problem(encoder, tokenizer, targets, anchors, captions, weights)
        edits = {family.denoiser: method.edits(problem)}
        made_by = OtherMethod(method.name, asdict(method))
        adapter = assemble_adapter(pipe, family, spec, made_by, encoder, edits)
        notes = notes_on_cut_captions(tokenizer, captions)
    for note in notes:
        warnings.warn(note, stacklevel=level_of_caller())
    report = replace(
        adapter.report,
        notes=(*adapter.report.notes, *notes),
        seconds=time.perf_counter() - began,
    )
    return replace(adapter, report=report)


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each whole text, those that begin and end it among them; none is cut."""
    learned = expansions_of(tokenizer)
    with quiet_cuts():
        return [len(tokenizer(expand(text, learned)).input_ids) for text in texts]


def notes_on_cut_captions(tokenizer: Any, captions: Sequence[str]) -> tuple[str, ...]:
    """One note where captions to keep are longer than the text encoder reads."""
    limit = tokenizer.model_max_length
    lengths = [length for length in count_tokens(tokenizer, captions) if length > limit]
    if not lengths:
        return ()
    of_all = count_noun(len(captions), "caption")
    return (
        f"{len(lengths)} of {of_all} to keep do not fit into the {limit} tokens that the text "
        f"encoder reads (the longest has {max(lengths)}); they count without their ends, as a "
        "call would read them",
    )


def target_texts(
    spec: ErasureSpec, templates: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Every word of every concept in every template, and the same texts with its anchor."""
    targets = []
    anchors = []
    for concept in spec.concepts:
        for word in concept.words:
            targets += [template.replace("{}", word) for template in templates]
            anchors += [template.replace("{}", concept.anchor) for template in templates]
    return tuple(targets), tuple(anchors)


def multiply_weights(weights: Mapping[str, Tensor], change: LowRank) -> dict[str, LowRank]:
    """The edits that make every W into W (I + F), for the change F of states."""
    return {path: LowRank(W @ change.B, change.A) for path, W in weights.items()}


def solve_ridge(
    X: Tensor, Y: Tensor, K: Tensor, erase: float, preserve: float, lamb: float
) -> LowRank:
    """The change F of states with which W (I + F) answers `X` as W answers `Y`, and keeps `K`.

    W (I + F) = argmin over W*  e |W* X - W Y|^2 + p |(W* - W) K|^2 + lamb |W* - W|^2,  which is
    F = e (Y - X) X' S^-1  with  S = e X X' + p K K' + lamb I.

    Args:
        X: `(d, n)` states of the targets.
        Y: `(d, n)` states of their anchors.
        K: `(d, m)` states to keep.
        erase: e, the weight of the targets.
        preserve: p, the weight of what is kept.
        lamb: Weight of the change itself. Larger keeps the edit smaller.
    """
    S = erase * X @ X.T + preserve * K @ K.T + lamb * torch.eye(len(X), dtype=X.dtype)
    return LowRank(erase * (Y - X), torch.linalg.solve(S, X).T)
