"""The whole words of a vocabulary, and prompts that differ in one token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from .tokens import TextPath, Tokens, tokenizer_of

WORD_LIMIT = 20_000
"""Words of a vocabulary that are looked at, the first by id: those are the frequent ones."""
_WORDS_OF: WeakKeyDictionary[Any, dict[str, int]] = WeakKeyDictionary()


def whole_words(tokenizer: Any) -> dict[str, int]:
    """Text -> id of every token that is a whole word of letters, after a space."""
    if tokenizer not in _WORDS_OF:
        _WORDS_OF[tokenizer] = _find_whole_words(tokenizer)
    return _WORDS_OF[tokenizer]


def _find_whole_words(tokenizer: Any) -> dict[str, int]:
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    texts: dict[str, int] = {}
    for token, token_id in tokens:
        text = tokenizer.convert_tokens_to_string([token]).strip()
        if len(text) > 1 and text.isalpha():
            texts.setdefault(text, token_id)
    if not texts:
        return {}
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    encoded = tokenizer([f"a {text}" for text in texts], add_special_tokens=False)["input_ids"]
    found = {}
    for (text, token_id), ids in zip(texts.items(), encoded, strict=True):
        if ids == [*before, token_id]:
            found[text] = token_id
    return dict(list(found.items())[:WORD_LIMIT])


def prompts_with_token(
    path: TextPath, prompt: str, at: int, ids: Sequence[int], *, stop: int | None = None
) -> Tokens:
    """The prompt once per id, which stands at token position `at` of it.

    Args:
        path: Of one encoder.
        prompt: What the other tokens are.
        at: The position.
        ids: What stands there.
        stop: Positions from here on are cut, also where an encoder reads its padding: what is asked
            for is what the first blocks make of a word. None cuts behind the token after `at`.
    """
    one = path.tokens([prompt])
    stop = at + 2 if stop is None else stop
    rows = one.cut(stop).ids.repeat(len(ids), 1)
    rows[:, at] = torch.tensor(ids, dtype=rows.dtype)
    mask = None if one.mask is None else one.mask[:, :stop].repeat(len(ids), 1)
    return Tokens(rows, mask)


def position_of_word(path: TextPath, frame: str) -> tuple[str, int]:
    """The frame filled with a word of one token, and the token position of that word.

    Raises:
        StopIteration: No word of the vocabulary keeps its token in this frame.
    """
    for word, token_id in whole_words(tokenizer_of(path)).items():
        prompt = frame.format(word)
        places = (path.tokens([prompt]).ids[0] == token_id).nonzero()
        if len(places) == 1:
            return prompt, int(places[0])
    raise StopIteration
