"""From a spec to aligned token positions: templates, prompt pairs, ids, spans from the tokenizer's offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import ConceptSpecError
from .spec import Concept, ErasureSpec

T = TypeVar("T")

MEASURED = {"held_out": 64, "kept": 8}
"""Prompts that the report's residual and drift are measured on, at most."""


@dataclass(frozen=True)
class Alignment:
    """Which target positions are sent to which anchor positions."""

    whole_subject: bool = False
    """Every subject token, or the last one only."""
    suffix: bool = False
    eos: bool = True
    padding: bool = False


ALIGNMENTS = {
    "last_subject": Alignment(eos=False),
    "last_subject+eos": Alignment(),
    "subject": Alignment(whole_subject=True, eos=False),
    "subject+eos": Alignment(whole_subject=True),
    "subject_to_eos": Alignment(whole_subject=True, suffix=True),
    "all": Alignment(whole_subject=True, suffix=True, padding=True),
}


@dataclass(frozen=True)
class Prompt:
    """A prompt with a concept in it."""

    text: str
    start: int
    """Characters `[start, stop)` are the concept."""
    stop: int

    @classmethod
    def of(cls, template: str, words: str) -> Prompt:
        at = template.index("{}")
        return cls(template.replace("{}", words), at, at + len(words))


@dataclass(frozen=True)
class Pair:
    """What is said, and what it shall mean."""

    target: Prompt
    anchor: Prompt


@dataclass(frozen=True)
class Rows:
    """Token ids of prompt pairs, and the positions to align: column k is row `row[k]`."""

    target_ids: Tensor
    """`(n, length)`"""
    anchor_ids: Tensor
    """`(n, length)`"""
    row: Tensor
    """`(k,)`"""
    target_at: Tensor
    """`(k,)`"""
    anchor_at: Tensor
    """`(k,)`"""

    def __len__(self) -> int:
        return len(self.target_ids)

    @property
    def length(self) -> int:
        """Tokens up to the last aligned one."""
        return 1 + max([0, *self.target_at.tolist(), *self.anchor_at.tolist()])


def pairs_of(concepts: Sequence[Concept], kind: str, *, most: int | None = None) -> list[Pair]:
    """The pairs of one kind, "exact", "soft" or "held_out", each once; at most `most` of a word."""
    pairs = (
        Pair(Prompt.of(template, word), Prompt.of(template, concept.anchor))
        for concept in concepts
        for word in concept.words
        for template in spread(_templates(concept, word, kind), most)
    )
    return list(dict.fromkeys(pairs))


def _templates(concept: Concept, word: str, kind: str) -> tuple[str, ...]:
    """Only the target is held exactly. Words of one meaning arrive at the deep layers as nearly the same key, where
    different exact corrections (their lengths differ) cost drift: a synonym takes every template softly."""
    if kind == "held_out" or word == concept.target:
        return tuple(getattr(concept, kind))
    return () if kind == "exact" else (*concept.exact, *concept.soft)


def listed_prompts(spec: ErasureSpec) -> list[str]:
    """The prompts whose residual is zero."""
    return [pair.target.text for pair in pairs_of(spec.concepts, "exact")]


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Ids `(n, length)`, padded to the tokenizer's limit as the pipelines pad them."""
    length = tokenizer.model_max_length
    if not texts:
        return torch.zeros(0, length, dtype=torch.long)
    return tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def span(tokenizer: Any, prompt: Prompt) -> tuple[list[int], int]:
    """Token positions of the concept in `prompt`, and the position of the first EOS.

    The empty concept sits on the token before it, so that "nothing in its place" means what stands there now.

    Raises:
        ConceptSpecError: The concept lies past the tokenizer's limit, or has no token.
    """
    limit = tokenizer.model_max_length
    offsets = tokenizer(prompt.text, return_offsets_mapping=True, truncation=False)["offset_mapping"]
    inner = range(1, len(offsets) - 1)  # between BOS and EOS
    if prompt.start == prompt.stop:
        at = [max([0, *(i for i in inner if offsets[i][1] <= prompt.start)])]
    else:
        at = [i for i in inner if offsets[i][0] < prompt.stop and offsets[i][1] > prompt.start]
    if not at:
        raise ConceptSpecError(f"{prompt.text[prompt.start : prompt.stop]!r} has no token of its own in {prompt.text!r}")
    if at[-1] >= limit - 1:
        raise ConceptSpecError(
            f"concept truncated in {prompt.text[:60]!r}: it needs {at[-1] + 2} tokens, the tokenizer allows {limit}; "
            "use a shorter template"
        )
    return at, min(len(offsets), limit) - 1


def aligned(pair: Pair, tokenizer: Any, alignment: Alignment) -> list[tuple[int, int]]:
    """`(target position, anchor position)` of every aligned token; the last subject token meets the last anchor token."""
    target, target_eos = span(tokenizer, pair.target)
    anchor, anchor_eos = span(tokenizer, pair.anchor)
    found = [(target[-1], anchor[-1])]
    if alignment.whole_subject:
        found = [(t, anchor[min(i, len(anchor) - 1)]) for i, t in enumerate(target[:-1])] + found
    if alignment.suffix:
        found += list(zip(range(target[-1] + 1, target_eos), range(anchor[-1] + 1, anchor_eos), strict=False))
    if alignment.eos:
        found.append((target_eos, anchor_eos))
    if alignment.padding:
        last = tokenizer.model_max_length
        found += list(zip(range(target_eos + 1, last), range(anchor_eos + 1, last), strict=False))
    return found


def rows_of(pairs: Sequence[Pair], tokenizer: Any, alignment: Alignment) -> Rows:
    """Token rows and aligned positions of `pairs`.

    Raises:
        ConceptSpecError: A target and its anchor are the same tokens, or two pairs ask different things of one prompt.
    """
    targets = token_ids(tokenizer, [p.target.text for p in pairs])
    anchors = token_ids(tokenizer, [p.anchor.text for p in pairs])
    asked: dict[tuple[int, ...], str] = {}
    columns: list[tuple[int, int, int]] = []
    for i, pair in enumerate(pairs):
        positions = aligned(pair, tokenizer, alignment)  # first, as truncation makes different prompts the same tokens
        if torch.equal(targets[i], anchors[i]):
            raise ConceptSpecError(f"{pair.target.text!r} and {pair.anchor.text!r} are the same tokens; nothing to erase")
        key = tuple(targets[i].tolist())
        if asked.setdefault(key, pair.anchor.text) != pair.anchor.text:
            raise ConceptSpecError(f"{pair.target.text!r} is sent to {asked[key]!r} and to {pair.anchor.text!r}; keep one")
        columns += [(i, t, a) for t, a in positions]
    row, target_at, anchor_at = torch.tensor(columns, dtype=torch.long).reshape(-1, 3).T
    return Rows(targets, anchors, row, target_at, anchor_at)


def rows_by_kind(
    concepts: Sequence[Concept], captions: Sequence[str], tokenizer: Any, alignment: Alignment, *, soft_budget: int
) -> dict[str, Rows]:
    """Rows of "exact" and "soft" prompts to solve for, of "held_out" prompts and "kept" captions to measure.

    Each prompt comes once; any but the first kind may be empty. Measuring takes a sample, evenly spread. Every word
    gets its share of `soft_budget`, and two soft prompts at least.
    """
    unseen = spread(pairs_of(concepts, "held_out"), MEASURED["held_out"])
    share = max(2, soft_budget // sum(len(c.words) for c in concepts))
    pairs = {"exact": pairs_of(concepts, "exact"), "soft": pairs_of(concepts, "soft", most=share), "held_out": unseen}
    rows = {kind: rows_of(found, tokenizer, alignment) for kind, found in pairs.items()}
    return rows | {"kept": kept_rows(spread(captions, MEASURED["kept"]), tokenizer)}


def kept_rows(captions: Sequence[str], tokenizer: Any) -> Rows:
    """Captions as rows whose every token is its own anchor, up to and with the first EOS."""
    ids = token_ids(tokenizer, captions)
    last = [min(len(tokenizer(text).input_ids), ids.shape[1]) for text in captions]
    columns = [(i, t) for i, count in enumerate(last) for t in range(count)]
    row, at = torch.tensor(columns, dtype=torch.long).reshape(-1, 2).T
    return Rows(ids, ids, row, at, at)


def spread(items: Sequence[T], most: int | None) -> list[T]:
    """At most `most` of `items`, evenly from first to last."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
