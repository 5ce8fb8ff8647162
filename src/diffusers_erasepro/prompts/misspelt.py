"""Targets that no vocabulary knows and that are nearly a word which one does: likely misspelt."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any

from ..config.spec import Concept
from .own_tokens import english_words
from .vocabulary import every_whole_word

FEWEST_LETTERS = 4
"""Letters of a word that is looked at; of shorter ones too much is a letter away."""
FAR = 7
"""Letters from which on two may differ."""
MOST = 3
"""Words that a warning names."""


def notes_on_misspelt(concepts: Iterable[Concept], tokenizers: Iterable[Any]) -> list[str]:
    """One line per word of a target that no vocabulary knows, with the words next to it.

    Args:
        concepts: What shall be erased.
        tokenizers: Of the pipeline's text encoders.
    """
    doubtful = []
    for concept in concepts:
        doubtful += [(concept, word) for word in concept.target.split() if _is_doubtful(word)]
    if not doubtful:  # the usual case: no vocabulary need be read
        return []
    known: dict[str, int] = {}
    for tokenizer in tokenizers:
        for word, token in every_whole_word(tokenizer).items():
            known.setdefault(word.casefold(), token)
    notes = []
    for concept, word in doubtful:
        if word.casefold() not in known:
            close = _close_words(word, known)
            if close:
                notes.append(
                    f"no vocabulary here knows {word!r} in the target {concept.target!r}; did you "
                    f"mean {' or '.join(map(repr, close))}?"
                )
    return notes


def _is_doubtful(word: str) -> bool:
    """Whether a word is long enough to be misspelt, and in no list of words and names."""
    plain = word.casefold()
    letters = plain.isascii() and plain.isalpha()
    return letters and len(word) >= FEWEST_LETTERS and plain not in english_words()


def _close_words(word: str, known: Mapping[str, int]) -> list[str]:
    """Words a letter or two from one that nobody knows, frequent ones first.

    A name may be unknown to a list of words, so that one with a capital is compared with what the
    encoders know alone, and has to begin with the same letter and end up one letter away.

    Args:
        word: Of a target.
        known: Text -> token, which vocabularies sort by frequency.
    """
    plain = word.casefold()
    is_name = word != plain
    words = known.keys() if is_name else known.keys() | english_words()
    once = _one_letter_off(plain)
    close = once & words
    if is_name:
        close = {other for other in close if other[0] == plain[0]}
    elif not close and len(plain) >= FAR:
        for other in once:
            close |= _one_letter_off(other) & words
    close = {other for other in close if len(other) >= FEWEST_LETTERS - 1}

    def rank(other: str) -> tuple[bool, int, str]:
        return (other[:2] != plain[:2], known.get(other, len(known)), other)

    return sorted(close, key=rank)[:MOST]


def _one_letter_off(word: str) -> set[str]:
    """With a letter left out, exchanged, put in, or two neighbours swapped (Norvig's speller)."""
    found = set()
    for at in range(len(word) + 1):
        before = word[:at]
        after = word[at:]
        if after:
            found.add(before + after[1:])
        if len(after) > 1:
            found.add(before + after[1] + after[0] + after[2:])
        for letter in string.ascii_lowercase:
            found.add(before + letter + after)
            if after:
                found.add(before + letter + after[1:])
    return found - {word}
