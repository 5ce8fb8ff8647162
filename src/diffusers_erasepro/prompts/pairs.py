"""From a spec to aligned token positions: templates, prompt pairs, ids, spans from the tokenizer's offsets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..config.spec import Concept, Mentions
from ..errors import ConceptSpecError
from ..families.encode_prompt import PromptSpan, RecordedInputs, record_inputs, tokenize
from ..families.pipelines import family_of, get_component
from ..families.types import Use

T = TypeVar("T")
_EMPTY: WeakKeyDictionary[Any, dict[tuple[type, str], Tokens]] = WeakKeyDictionary()
"""Per tokenizer, pipeline class and encoder."""

MEASURED = {"held_out": 64, "kept": 8}
"""Prompts that the report's residual and drift are measured on, at most."""
BATCH_TOKENS = 4096
"""Of one forward pass; the memory of long rows and wide encoders stays bounded."""


@dataclass(frozen=True)
class Alignment:
    """Which target positions are sent to which anchor positions."""

    whole_subject: bool = False
    """Every subject token, or the last one only."""
    suffix: bool = False
    eos: bool = True
    """What follows the prompt: EOS, or the end of a chat template."""
    padding: bool = False


Held = Alignment | Mapping[str, Alignment]
"""Which positions are held: of all prompts alike, or by the word they name."""


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

    @property
    def word(self) -> str:
        """The concept, as the prompt names it."""
        return self.target.text[self.target.start : self.target.stop]


@dataclass(frozen=True)
class Tokens:
    """Prompts as a text encoder receives them."""

    ids: Tensor
    """`(n, length)`"""
    mask: Tensor | None = None
    """`(n, length)` attention mask, if the pipeline gives one: then it reads no other position. Of trees
    `(n, 1, length, length)`, what is added to the attention scores."""
    positions: Tensor | None = None
    """`(n, length)` of trees, as in their prompts."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: slice) -> Tokens:
        return Tokens(self.ids[at], None if self.mask is None else self.mask[at])

    def cut(self, length: int) -> Tokens:
        """Their first `length` positions."""
        return Tokens(self.ids[:, :length], None if self.mask is None else self.mask[:, :length])

    def trimmed(self) -> Tokens:
        """Without the last positions, where the mask hides them in every row."""
        return self.cut(int(self.read.any(0).nonzero().max()) + 1) if self.read.any() else self

    def unique(self) -> tuple[Tokens, Tensor]:
        """Each row once, and where `(n,)` each row went."""
        ids, to = torch.unique(self.ids, dim=0, return_inverse=True)
        if self.mask is None:
            return Tokens(ids), to
        return Tokens(
            ids, torch.zeros(ids.shape, dtype=self.mask.dtype).index_copy(0, to, self.mask)
        ), to

    def split(self) -> Iterator[Tokens]:
        """Batches of about `BATCH_TOKENS` tokens."""
        size = max(1, BATCH_TOKENS // self.ids.shape[1])
        return (self[i : i + size] for i in range(0, len(self), size))

    @property
    def read(self) -> Tensor:
        """`(n, length)`, true where the denoiser reads: everywhere, if there is no mask."""
        return (
            torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask.bool()
        )


def joined(parts: Sequence[Tokens]) -> Tokens:
    """One after the other; shorter rows get positions that the mask hides."""
    length = max(p.ids.shape[1] for p in parts)

    def even(rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([nn.functional.pad(x, (0, length - x.shape[1])) for x in rows])

    masks = [p.mask for p in parts if p.mask is not None]
    return Tokens(even([p.ids for p in parts]), even(masks) if masks else None)


@dataclass(frozen=True)
class Rows:
    """Prompt pairs as tokens, and the positions to align: column k is row `row[k]`."""

    target: Tokens
    anchor: Tokens
    row: Tensor
    """`(k,)`"""
    target_at: Tensor
    """`(k,)`"""
    anchor_at: Tensor
    """`(k,)`"""

    def __len__(self) -> int:
        return len(self.target)

    @property
    def length(self) -> int:
        """Tokens up to the last aligned one."""
        return 1 + max([0, *self.target_at.tolist(), *self.anchor_at.tolist()])

    @property
    def needed(self) -> Tensor:
        """`(2, n)` tokens of each target, and of each anchor, up to the last aligned one."""
        none = torch.zeros(len(self), dtype=torch.long)
        return torch.stack(
            [
                none.scatter_reduce(0, self.row, at + 1, "amax")
                for at in (self.target_at, self.anchor_at)
            ]
        )

    def subjects(self) -> Rows:
        """Only the first position of each row: of rows aligned at the last subject token, that token."""
        return self.only(self._first)

    def ends(self) -> Rows:
        """All but that: of rows aligned at the last subject token and at EOS, EOS."""
        return self.only(~self._first)

    @property
    def _first(self) -> Tensor:
        return self.row.diff(prepend=torch.tensor([-1])) > 0

    def only(self, some: Tensor) -> Rows:
        """Of the positions, those marked in `some` `(k,)`."""
        return replace(
            self, row=self.row[some], target_at=self.target_at[some], anchor_at=self.anchor_at[some]
        )

    def naming(self, words: Set[str], pairs: Sequence[Pair]) -> Rows:
        """Of the positions, those in rows that name one of `words`; these are rows of `pairs`."""
        mine = torch.tensor([pair.word in words for pair in pairs], dtype=torch.bool)
        return self.only(mine[self.row])

    @property
    def target_ids(self) -> Tensor:
        """`(n, length)`"""
        return self.target.ids

    @property
    def anchor_ids(self) -> Tensor:
        """`(n, length)`"""
        return self.anchor.ids


@dataclass(frozen=True)
class TextPath:
    """One text encoder, called as its pipeline calls it."""

    pipe: Any
    use: Use

    @property
    def encoder(self) -> nn.Module:
        """The live module."""
        return get_component(self.pipe, self.use.encoder)

    @property
    def pooled(self) -> bool:
        """Whether the pipeline reads one vector per prompt of it."""
        return any(reading.pooled for reading in self.use.readings)

    def record(self, texts: Sequence[str], *, guidance: bool = False) -> RecordedInputs:
        """What the encoder receives for `texts`."""
        return record_inputs(
            self.pipe, texts, self.use.encoder, self.use.tokenizer, guidance=guidance
        )

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Prompts as the encoder receives them."""
        return _tokens(self.record(texts))

    def empty(self) -> Tokens:
        """The unconditional prompt, as guidance encodes it where `encode_prompt` does so; that runs the encoder, so once."""
        known = _EMPTY.setdefault(getattr(self.pipe, self.use.tokenizer), {})
        key = (type(self.pipe), self.use.encoder)
        if key not in known:
            known[key] = _tokens(self.record([""], guidance=True))[-1:]
        return known[key]


def text_paths(pipe: Any) -> list[TextPath]:
    """The text encoders of a pipeline that are there.

    Raises:
        UnknownFamilyError: The pipeline has no record.
        AdapterStateError: None of its encoders is there.
    """
    family = family_of(pipe)
    there = [use for use in family.encoders if getattr(pipe, use.encoder, None) is not None]
    found = [TextPath(pipe, use.on(partial(get_component, pipe, family.denoiser))) for use in there]
    if not found:
        get_component(pipe, family.encoders[0].encoder)  # says which is missing
    return found


def pairs_of(concepts: Sequence[Concept], kind: str, *, most: int | None = None) -> list[Pair]:
    """The pairs of one kind, "exact", "soft" or "held_out", each once; at most `most` of a word."""
    named = Mentions(w for c in concepts for w in c.words)
    pairs = (
        Pair(Prompt.of(template, word), Prompt.of(template, concept.anchor))
        for concept in concepts
        for word in concept.words
        for template in spread(_templates(concept, word, kind, named), most)
    )
    return list(dict.fromkeys(pairs))


def _templates(concept: Concept, word: str, kind: str, named: Mentions) -> tuple[str, ...]:
    """Only the target is held exactly. Words of one meaning arrive at the deep layers as nearly the same key, where
    different exact corrections (their lengths differ) cost drift: a synonym takes every template softly.

    A phrase that itself names a target ("a star by {}") would ask for that target back; only an exact one may.
    """
    if kind == "exact":
        return concept.exact if word == concept.target else ()
    soft = concept.soft if word == concept.target else (*concept.exact, *concept.soft)
    return tuple(t for t in (soft if kind == "soft" else concept.held_out) if t not in named)


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Ids `(n, length)` of a tokenizer that stands alone, padded to its limit."""
    return tokenize(tokenizer, texts).inputs["input_ids"]


def span(mark: PromptSpan, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Token positions of the concept in `prompt`, and those after the prompt's own (EOS, or the end of a chat template).

    The empty concept sits on the token before it, so that "nothing in its place" means what stands there now. Where
    nothing follows the prompt, its last token stands for the end: it has read everything.

    Raises:
        ConceptSpecError: The concept lies past the tokenizer's limit, or has no token.
    """
    inside = [(i, mark.offsets[i]) for i in range(mark.first, mark.stop)]
    words = [(i, at) for i, at in inside if at is not None and at[1] > at[0]]
    leading = next((i for i, at in inside if at is not None), mark.first + 1) - 1
    before = max([leading, *(i for i, at in words if at[1] <= prompt.start)])
    at = [i for i, at in words if at[0] < prompt.stop and at[1] > prompt.start]
    last = max([before, *(i for i, at in words if at[0] < len(prompt.text))])
    if prompt.start == prompt.stop:
        at = [max(before, mark.first)]
    covered = max([0, *(stop for _, (_, stop) in words)])
    if mark.needed > mark.stop - mark.first and covered < prompt.stop:
        raise ConceptSpecError(
            f"concept truncated in {prompt.text[:60]!r}: it needs {mark.needed} tokens, the tokenizer allows "
            f"{mark.stop - mark.first}; use a shorter template"
        )
    if not at:
        raise ConceptSpecError(
            f"{prompt.text[prompt.start : prompt.stop]!r} has no token of its own in {prompt.text!r}"
        )
    return at, list(range(last + 1, mark.stop)) or [last]


def aligned(
    pair: Pair, marks: tuple[PromptSpan, PromptSpan], alignment: Alignment
) -> list[tuple[int, int]]:
    """`(target position, anchor position)` of every aligned token; the last subject token meets the last anchor token."""
    target, target_end = span(marks[0], pair.target)
    anchor, anchor_end = span(marks[1], pair.anchor)
    found = [(target[-1], anchor[-1])]
    if alignment.whole_subject:
        found = [(t, anchor[min(i, len(anchor) - 1)]) for i, t in enumerate(target[:-1])] + found
    if alignment.suffix:
        found += list(
            zip(
                range(target[-1] + 1, target_end[0]),
                range(anchor[-1] + 1, anchor_end[0]),
                strict=False,
            )
        )
    if alignment.eos:
        found += list(zip(target_end, anchor_end, strict=False))
    if alignment.padding:
        last = len(marks[0].offsets)
        found += list(
            zip(range(target_end[-1] + 1, last), range(anchor_end[-1] + 1, last), strict=False)
        )
    return list(dict.fromkeys(found))


def _marked(source: Any, prompts: Sequence[Prompt]) -> tuple[Tokens, list[PromptSpan]]:
    """Tokens and marks of `prompts`; `source` is a text path, or a tokenizer that stands alone."""
    found = _recorded(source, ["", *(p.text for p in prompts)])
    marks = []
    for i, prompt in enumerate(prompts, 1):
        mark = found.locate(i, prompt.text, found.text(0))
        if mark is None:
            raise ConceptSpecError(
                f"the pipeline rewrites {prompt.text!r} to {found.text(i)!r} before it is tokenized; write the concept "
                "and its templates that way"
            )
        marks.append(mark)
    return _tokens(found)[1:], marks


def rows_of(pairs: Sequence[Pair], source: Any, held: Held) -> Rows:
    """Token rows and aligned positions of `pairs`.

    Args:
        pairs: What is said, and what it shall mean.
        source: The `TextPath` that reads them, or a tokenizer that stands alone.
        held: Which positions; a pooled vector's, the end of the prompt, is always among them.

    Raises:
        ConceptSpecError: A target and its anchor are the same tokens, or two pairs ask different things of one prompt.
    """
    pooled = isinstance(source, TextPath) and source.pooled
    tokens, marks = _marked(source, [p.target for p in pairs] + [p.anchor for p in pairs])
    targets, anchors = tokens[: len(pairs)], tokens[len(pairs) :]
    asked: dict[tuple[int, ...], str] = {}
    columns: list[tuple[int, int, int]] = []
    for i, pair in enumerate(pairs):
        # first, as truncation makes different prompts the same tokens
        alignment = held[pair.word] if isinstance(held, Mapping) else held
        alignment = replace(alignment, eos=True) if pooled else alignment
        positions = aligned(pair, (marks[i], marks[len(pairs) + i]), alignment)
        if torch.equal(targets.ids[i], anchors.ids[i]):
            raise ConceptSpecError(
                f"{pair.target.text!r} and {pair.anchor.text!r} are the same tokens; nothing to erase"
            )
        key = tuple(targets.ids[i].tolist())
        if asked.setdefault(key, pair.anchor.text) != pair.anchor.text:
            raise ConceptSpecError(
                f"{pair.target.text!r} is sent to {asked[key]!r} and to {pair.anchor.text!r}; keep one"
            )
        columns += [(i, t, a) for t, a in positions]
    row, target_at, anchor_at = torch.tensor(columns, dtype=torch.long).reshape(-1, 3).T
    return Rows(targets, anchors, row, target_at, anchor_at)


def pairs_to_solve(concepts: Sequence[Concept], *, soft_budget: int) -> dict[str, list[Pair]]:
    """ "exact" and "soft" pairs; every word gets its share of `soft_budget`, and two soft ones at least."""
    share = max(2, soft_budget // sum(len(c.words) for c in concepts))
    return {"exact": pairs_of(concepts, "exact"), "soft": pairs_of(concepts, "soft", most=share)}


def rows_to_solve(
    concepts: Sequence[Concept], source: Any, held: Held, *, soft_budget: int
) -> dict[str, Rows]:
    """Rows of `pairs_to_solve`."""
    pairs = pairs_to_solve(concepts, soft_budget=soft_budget)
    return {kind: rows_of(found, source, held) for kind, found in pairs.items()}


def rows_to_measure(
    concepts: Sequence[Concept], captions: Sequence[str], source: Any, held: Held
) -> dict[str, Rows]:
    """Rows of "held_out" prompts and of "kept" captions: a sample, evenly spread. Either may be empty."""
    unseen = spread(pairs_of(concepts, "held_out"), MEASURED["held_out"])
    return {
        "held_out": rows_of(unseen, source, held),
        "kept": kept_rows(spread(captions, MEASURED["kept"]), source),
    }


def kept_rows(captions: Sequence[str], source: Any) -> Rows:
    """Captions as rows whose every token, from the prompt's first to the end, is its own anchor."""
    found = _recorded(source, ["", *captions])
    columns = [
        (i, t)
        for i, text in enumerate(captions)
        for t in found.prompt_positions(i + 1, text, found.text(0))
    ]
    row, at = torch.tensor(columns, dtype=torch.long).reshape(-1, 2).T
    tokens = _tokens(found)[1:]
    return Rows(tokens, tokens, row, at, at)


def spread(items: Sequence[T], most: int | None) -> list[T]:
    """At most `most` of `items`, evenly from first to last."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def _recorded(source: Any, texts: Sequence[str]) -> RecordedInputs:
    return source.record(texts) if isinstance(source, TextPath) else tokenize(source, texts)


def _tokens(found: RecordedInputs) -> Tokens:
    return Tokens(found.inputs["input_ids"], found.inputs.get("attention_mask"))
