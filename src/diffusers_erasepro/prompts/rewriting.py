"""Where a prompt is in a row of tokens whose pipeline rewrote it first: stripped it, cleaned it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from operator import eq

from ..families.encode_prompt import PromptSpan, RecordedInputs
from .learned_tokens import expand, shrink

SIGNS = frozenset("&@#%‰§†‡")
"""Punctuation to Unicode, a part of a name to a reader: "C#" is not "C"."""


def locate_prompts(
    found: RecordedInputs, prompts: Sequence[str], expansions: Mapping[str, str] | None = None
) -> list[PromptSpan | None]:
    """Where each prompt is in its row, in characters of the prompt as it was given.

    A pipeline may change case, spaces and punctuation, which leaves the words what they are, and
    write all tokens of a textual inversion for the first.

    Args:
        found: Row 0 is the empty prompt, row i the i-th of `prompts`.
        prompts: What the pipeline was given.
        expansions: As `learned_tokens.expansions_of`.

    Returns:
        Per prompt its span; None where the pipeline made other words of it.
    """
    wrapping = found.text(0)
    learned = expansions or {}
    written = []
    for row, prompt in enumerate(prompts, 1):
        written.append(_find_rewritten(found.text(row), prompt, wrapping, learned))
    starts = [at[0] for at, text in zip(written, prompts, strict=True) if at and text.strip()]
    spans: list[PromptSpan | None] = []
    for row, (prompt, at) in enumerate(zip(prompts, written, strict=True), 1):
        if prompt.strip() or not starts or not wrapping:
            span = _locate_as_given(found, row, prompt, at[1] if at else None, learned)
            spans.append(span or _locate_beginning(found, row, prompt, learned))
        elif found.text(row) == wrapping:
            # nothing of it is in the row: it is where the others are
            span = found.locate(row, "", wrapping)
            spans.append(span and _moved_back(span, starts[0]))
        else:
            spans.append(found.locate(row, prompt, wrapping))
    return spans


def _locate_as_given(
    found: RecordedInputs,
    row: int,
    prompt: str,
    rewritten: str | None,
    expansions: Mapping[str, str],
) -> PromptSpan | None:
    wrapping = found.text(0)
    span = found.locate(row, prompt, wrapping)
    if span is not None or rewritten is None:
        return span
    span = found.locate(row, rewritten, wrapping)
    characters = match_characters(rewritten, prompt, expansions)
    if span is None or characters is None:
        return None
    offsets = [
        None if at is None else _as_given(at, characters, len(prompt)) for at in span.offsets
    ]
    return replace(span, offsets=tuple(offsets))


def _locate_beginning(
    found: RecordedInputs, row: int, prompt: str, expansions: Mapping[str, str]
) -> PromptSpan | None:
    """Where a prompt is whose first tokens fill the row, up to one behind them.

    Pipelines that read long prompts in parts give the encoder such rows.
    """
    ids = found.inputs["input_ids"][row].tolist()
    for noted in found.texts.values():
        for text, encoding in noted:
            flags = zip(encoding.special_tokens_mask, encoding.attention_mask, strict=True)
            own = [at for at, (special, on) in enumerate(flags) if on and not special]
            run = [encoding.ids[at] for at in own]
            if expand(prompt, expansions) != text or not run or run[0] not in ids:
                continue
            start = ids.index(run[0])
            count = sum(takewhile(bool, map(eq, ids[start:], run)))
            if start + count < len(ids) - 1:
                continue
            offsets: list[tuple[int, int] | None] = [None] * len(ids)
            given = shrink(text, expansions)[1]
            offsets[start : start + count] = [
                _as_given(encoding.offsets[at], given, len(prompt)) for at in own[:count]
            ]
            return PromptSpan(tuple(offsets), 0, len(ids), len(ids) + len(run) - count)
    return None


def _find_rewritten(
    text: str, prompt: str, wrapping: str, expansions: Mapping[str, str]
) -> tuple[int, str] | None:
    """The first character of the prompt in `text`, and the prompt as it is written there.

    The rest of `text` is `wrapping`.
    """
    length = len(text) - len(wrapping)
    if length < 0:
        return None
    for start in range(len(wrapping) + 1):
        stop = start + length
        if text[:start] + text[stop:] != wrapping:
            continue
        if match_characters(text[start:stop], prompt, expansions) is not None:
            return start, text[start:stop]
    return None


def match_characters(
    rewritten: str, prompt: str, expansions: Mapping[str, str] | None = None
) -> list[tuple[int, int]] | None:
    """Per character of `rewritten`, the characters `[start, stop)` of `prompt` it stands for.

    Returns:
        None where their letters differ, case, composition and `expansions` aside.
    """
    if not expansions:
        return _match_letters(rewritten, prompt)
    short, stands_for = shrink(rewritten, expansions)
    characters = _match_letters(short, prompt)
    if characters is None:
        return None
    return [(characters[start][0], characters[stop - 1][1]) for start, stop in stands_for]


def _match_letters(rewritten: str, prompt: str) -> list[tuple[int, int]] | None:
    new = _letters(rewritten)
    old = _letters(prompt)
    if [letter for letter, _ in new] != [letter for letter, _ in old]:
        return None
    known: dict[int, tuple[int, int]] = {}
    for (_, at), (_, original) in zip(new, old, strict=True):
        start = known.get(at, (original, original))[0]
        known[at] = (start, original + 1)
    following = len(prompt)
    limits = []
    for at in reversed(range(len(rewritten))):
        following = known[at][0] if at in known else following
        limits.append(following)
    limits.reverse()
    found = []
    done = 0
    for at, character in enumerate(rewritten):
        if at not in known:
            original = prompt.find(character, done, limits[at])
            start = original if original >= 0 else done
            known[at] = (start, min(start + 1, limits[at]))
        found.append(known[at])
        done = max(done, known[at][1])
    return found


def _letters(text: str) -> list[tuple[str, int]]:
    """What makes the words of a text, decomposed and in lower case, and where each is in it."""
    found = []
    for at, character in enumerate(text):
        for letter in unicodedata.normalize("NFKD", character).lower():
            kind = unicodedata.category(letter)[0]
            if letter in SIGNS or kind not in "ZCP":
                found.append((letter, at))
    return found


def _as_given(
    at: tuple[int, int], characters: Sequence[tuple[int, int]], length: int
) -> tuple[int, int]:
    """Characters of the rewritten prompt as those of the prompt, of `length`, that was given."""
    start, stop = at
    count = len(characters)
    if stop <= 0:
        return at
    if start >= count:
        return start - count + length, stop - count + length
    first = start if start < 0 else characters[start][0]
    return first, max(first, characters[min(stop, count) - 1][1])


def _moved_back(span: PromptSpan, characters: int) -> PromptSpan:
    """The span of a prompt that begins so many characters later."""
    offsets = [
        None if at is None else (at[0] - characters, at[1] - characters) for at in span.offsets
    ]
    return replace(span, offsets=tuple(offsets))
