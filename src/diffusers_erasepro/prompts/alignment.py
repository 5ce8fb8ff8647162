"""Which token positions of a target prompt are sent to which of its anchor prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config.plan import Alignment
from ..config.spec import Concept
from ..errors import ConceptSpecError
from ..families.encode_prompt import PromptSpan, RecordedInputs
from .learned_tokens import expansions_of
from .pairs import Pair, Prompt, pairs_of, pairs_to_solve, spread
from .rewriting import locate_prompts
from .scripts import knows_script
from .tokens import TextPath, Tokens, record_texts, tokenizer_of, tokens_of
from .unknown_tokens import refuse_unknown_tokens, unknown_ids

MEASURED = {"held_out": 64, "kept": 8}
"""Prompts that the report's residual and drift are measured on, at most."""
CUT_PHRASE = "your phrase"
"""How a note on a phrase of one's own begins."""

Held = Alignment | Mapping[str, Alignment]
"""Which positions are held: of all prompts alike, or by the word they name."""


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
        """The first position of each row: where the last subject token is aligned, that token."""
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

    def as_written(self, pairs: Sequence[Pair]) -> Rows:
        """Of the positions, those in rows that name a concept as its spec does, in no other form
        or language; these are rows of `pairs`."""
        mine = torch.tensor([pair.stands_for is None for pair in pairs], dtype=torch.bool)
        return self.only(mine[self.row])

    @property
    def target_ids(self) -> Tensor:
        """`(n, length)`"""
        return self.target.ids

    @property
    def anchor_ids(self) -> Tensor:
        """`(n, length)`"""
        return self.anchor.ids


def span(mark: PromptSpan, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Token positions of the concept in `prompt`, and those after the prompt's own.

    The latter are EOS, or the end of a chat template.

    The empty concept sits on the token before it, so that "nothing in its place" means what stands
    there now. Where nothing follows the prompt, its last token stands for the end: it has read
    everything.

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
        name = prompt.text[prompt.start : prompt.stop]
        cure = "use a shorter template"
        if 2 * len(name) > len(prompt.text):
            cure = f"shorten what it names, {name[:40]!r}..."
        raise ConceptSpecError(
            f"concept truncated in {prompt.text[:60]!r}: it needs {mark.needed} tokens, the "
            f"tokenizer allows {mark.stop - mark.first}; {cure}"
        )
    if not at:
        raise ConceptSpecError(
            f"{prompt.text[prompt.start : prompt.stop]!r} has no token of its own in "
            f"{prompt.text!r}"
        )
    return at, list(range(last + 1, mark.stop)) or [last]


def counterparts(count: int, others: int) -> list[int]:
    """Which of another name's tokens each of a name's meets, by index; the last meets the last.

    Of a longer name the last tokens meet the other's, and those before them its first: in
    "vincent van gogh" -> "a painter" it is "van gogh" that becomes "a painter". A shorter one
    begins with the other's first.
    """
    ahead = max(0, count - others)
    met = [min(max(0, i - ahead), others - 1) for i in range(count)]
    return [*met[:-1], others - 1]


def aligned(
    pair: Pair, marks: tuple[PromptSpan, PromptSpan], alignment: Alignment
) -> list[tuple[int, int]]:
    """`(target position, anchor position)` of every aligned token.

    The last subject token meets the last anchor token; where every one is held, the others meet
    those of `counterparts`.
    """
    target, target_end = span(marks[0], pair.target)
    anchor, anchor_end = span(marks[1], pair.anchor)
    found = [(target[-1], anchor[-1])]
    if alignment.whole_subject:
        meets = counterparts(len(target), len(anchor))[:-1]
        found = [(t, anchor[at]) for t, at in zip(target, meets, strict=False)] + found
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
    texts = [prompt.text for prompt in prompts]
    # Mochi takes a batch that ends in the empty prompt for one of empty prompts
    last = texts[:1] if texts and not texts[-1].strip() else []
    found = record_texts(source, ["", *texts, *last])
    marks = []
    learned = expansions_of(tokenizer_of(source))
    for i, mark in enumerate(locate_prompts(found, texts, learned), 1):
        if mark is None:
            raise ConceptSpecError(_describe_rewritten(source, found, i, texts[i - 1]))
        marks.append(mark)
    return tokens_of(found)[1 : len(texts) + 1], marks


def _describe_rewritten(source: Any, found: RecordedInputs, row: int, text: str) -> str:
    """What became of a prompt that is not found in its row, and what to do."""
    mask = found.inputs.get("attention_mask")
    if mask is not None and not mask[row].any():
        return (
            f"the tokenizer puts nothing around a text, so that {text!r} has no token that could "
            "stand in a name's place; give an anchor of a word or more"
        )
    if written := found.text(row):
        return (
            f"the pipeline rewrites {text!r} to {written!r} before it is tokenized; write the "
            "concept and its templates that way"
        )
    ids = found.inputs["input_ids"][row].tolist()
    tokens = tokenizer_of(source).convert_ids_to_tokens(ids)[:12]
    pipeline = type(source.pipe).__name__ if isinstance(source, TextPath) else "the pipeline"
    return (
        f"{pipeline} puts the tokens of {text!r} together in a way that is not known here (the "
        f"encoder receives {tokens} ...); make the erasure on a stock pipeline with the same "
        "components, such as StableDiffusionPipeline(**pipe.components), and load it there: the "
        "encoders are shared"
    )


def rows_of(pairs: Sequence[Pair], source: Any, held: Held, *, with_pooled: bool = True) -> Rows:
    """Token rows and aligned positions of `pairs`.

    Args:
        pairs: What is said, and what it shall mean.
        source: The `TextPath` that reads them, or a tokenizer that stands alone.
        held: Which positions.
        with_pooled: A pooled vector's position, the end of the prompt, is among them in any case;
            without, where `held` says so.

    Raises:
        ConceptSpecError: A target and its anchor are the same tokens, two pairs ask different
            things of one prompt, or a prompt holds an unknown token.
    """
    pooled = with_pooled and isinstance(source, TextPath) and source.pooled
    prompts = [p.target for p in pairs] + [p.anchor for p in pairs]
    tokens, marks = _marked(source, prompts)
    targets = tokens[: len(pairs)]
    anchors = tokens[len(pairs) :]
    tokenizer = tokenizer_of(source)
    unknown = unknown_ids(tokenizer)
    asked: dict[tuple[int, ...], str] = {}
    columns: list[tuple[int, int, int]] = []
    for i, pair in enumerate(pairs):
        # first, as truncation makes different prompts the same tokens
        alignment = held[pair.word] if isinstance(held, Mapping) else held
        alignment = replace(alignment, eos=True) if pooled else alignment
        positions = aligned(pair, (marks[i], marks[len(pairs) + i]), alignment)
        for at in (i, len(pairs) + i):
            refuse_unknown_tokens(tokenizer, unknown, prompts[at], marks[at], tokens.ids[at])
        if torch.equal(targets.ids[i], anchors.ids[i]):
            raise ConceptSpecError(
                f"{pair.target.text!r} and {pair.anchor.text!r} are the same tokens; nothing to "
                "erase"
            )
        key = tuple(targets.ids[i].tolist())
        if asked.setdefault(key, pair.anchor.text) != pair.anchor.text:
            raise ConceptSpecError(
                f"{pair.target.text!r} is sent to {asked[key]!r} and to {pair.anchor.text!r}; keep "
                "one"
            )
        columns += [(i, t, a) for t, a in positions]
    row, target_at, anchor_at = torch.tensor(columns, dtype=torch.long).reshape(-1, 3).T
    return Rows(targets, anchors, row, target_at, anchor_at)


@dataclass(frozen=True)
class SortedPairs:
    """Soft or held-out pairs, by whether an encoder can read them."""

    readable: list[Pair]
    unread: list[Pair]
    """Phrases that are cut before the concept, shipped ones with an unknown token, and names in a
    script that the tokenizer has not learned."""

    def notes(self, encoder: str) -> list[str]:
        """What `encoder` goes without: a sentence per phrase of one's own, one for the others."""
        notes = []
        shipped = []
        for pair in self.unread:
            text = pair.target.text
            if pair.own:
                notes.append(
                    f"{CUT_PHRASE} {text[:60]!r} is cut by {encoder} before it comes to "
                    f"{pair.word!r}, and left out there; name it earlier"
                )
            elif pair.stands_for is None:
                shipped.append(text)
        if shipped:
            count = "one shipped phrase" if len(shipped) == 1 else f"{len(shipped)} shipped phrases"
            notes.append(f"{encoder} goes without {count} that it cannot read: {shipped[0][:60]!r}")
        if names := self.foreign_names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            notes.append(f"{encoder} goes without names it cannot read: {names[0]!r}{more}")
        return notes

    @property
    def foreign_names(self) -> list[str]:
        """The names in other languages that the encoder cannot read, each once."""
        targets = [pair.target for pair in self.unread if pair.foreign]
        return list(dict.fromkeys(prompt.text[prompt.start : prompt.stop] for prompt in targets))


def readable(pairs: Sequence[Pair], source: Any) -> list[Pair]:
    """The soft or held-out pairs that an encoder can read, as `sort_pairs` finds."""
    return sort_pairs(pairs, source).readable


def sort_pairs(pairs: Sequence[Pair], source: Any) -> SortedPairs:
    """Soft or held-out pairs, by whether an encoder can read them.

    A long phrase may be cut before it comes to the concept, and a shipped one may hold characters
    that the tokenizer does not know. A name in another language is left out where the tokenizer
    does not know its script. What is the same tokens as an earlier pair is in neither list:
    capitals, where the tokenizer has none.

    Args:
        pairs: What is said, and what it shall mean.
        source: The `TextPath` that reads them, or a tokenizer that stands alone.

    Raises:
        ConceptSpecError: A phrase of one's own holds an unknown token, or no phrase of a word of
            the concept can be read; then the message is the first one's.
    """
    prompts = [p.target for p in pairs] + [p.anchor for p in pairs]
    tokens, marks = _marked(source, prompts)
    tokenizer = tokenizer_of(source)
    unknown = unknown_ids(tokenizer)

    def refuse_cut(at: int) -> None:
        span(marks[at], prompts[at])

    def refuse_unknown(at: int) -> None:
        refuse_unknown_tokens(tokenizer, unknown, prompts[at], marks[at], tokens.ids[at])

    kept: list[Pair] = []
    unread: list[Pair] = []
    seen: set[tuple[int, ...]] = set()
    faults: dict[str, ConceptSpecError] = {}
    for i, pair in enumerate(pairs):
        ends = (i, len(pairs) + i)
        fault = _first_fault(refuse_cut, ends)
        if fault is None:
            fault = _first_fault(refuse_unknown, ends)
            if fault and pair.own:
                raise fault
        if fault:
            faults.setdefault(pair.word, fault)
            unread.append(pair)
            continue
        ids = tuple(tokens.ids[i].tolist())
        same = ids in seen or ids == tuple(tokens.ids[len(pairs) + i].tolist())
        name = prompts[i].text[prompts[i].start : prompts[i].stop]
        if pair.foreign and not knows_script(tokenizer, name):
            unread.append(pair)
            continue
        if pair.stands_for and same:
            continue
        seen.add(ids)
        kept.append(pair)
    lost = {pair.word for pair in pairs} - {pair.word for pair in kept}
    for word, fault in faults.items():
        if word in lost:
            raise fault
    return SortedPairs(kept, unread)


def _first_fault(refuse: Callable[[int], None], rows: Iterable[int]) -> ConceptSpecError | None:
    """What `refuse` says of the first of these rows that it refuses."""
    try:
        for row in rows:
            refuse(row)
    except ConceptSpecError as error:
        return error
    return None


def rows_to_solve(
    concepts: Sequence[Concept], source: Any, held: Held, *, soft_budget: int
) -> dict[str, Rows]:
    """Rows of `pairs_to_solve`."""
    pairs = pairs_to_solve(concepts, soft_budget=soft_budget)
    pairs["soft"] = readable(pairs["soft"], source)
    return {kind: rows_of(found, source, held) for kind, found in pairs.items()}


def rows_to_measure(
    concepts: Sequence[Concept], captions: Sequence[str], source: Any, held: Held
) -> dict[str, Rows]:
    """Rows of "held_out" prompts and of "kept" captions: a sample, evenly spread.

    Either may be empty.
    """
    unseen = spread(readable(pairs_of(concepts, "held_out"), source), MEASURED["held_out"])
    return {
        "held_out": rows_of(unseen, source, held),
        "kept": kept_rows(spread(captions, MEASURED["kept"]), source),
    }


def kept_rows(captions: Sequence[str], source: Any) -> Rows:
    """Captions as rows whose every token, from the prompt's first to the end, is its own anchor."""
    found = record_texts(source, ["", *captions])
    columns = [
        (i, t)
        for i, text in enumerate(captions)
        for t in found.prompt_positions(i + 1, text, found.text(0))
    ]
    row, at = torch.tensor(columns, dtype=torch.long).reshape(-1, 2).T
    tokens = tokens_of(found)[1:]
    return Rows(tokens, tokens, row, at, at)
