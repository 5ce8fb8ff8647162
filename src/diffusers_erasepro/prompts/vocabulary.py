"""The whole words of a vocabulary, and prompts that differ in one token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch

from .own_tokens import english_words
from .pairs import spread
from .tokens import TextPath, Tokens, tokenizer_of

WORD_LIMIT = 20_000
"""Words of a vocabulary that are looked at, the first by id: those are the frequent ones."""
LISTED_IN = 5
"""One in so many strangers is from the lists of words and names, where many have several tokens."""
END_OF_WORD = "</w>"
"""What byte-pair encoding appends to a token that ends a word, in CLIP's vocabulary."""
_WORDS_OF: WeakKeyDictionary[Any, dict[str, int]] = WeakKeyDictionary()


def every_whole_word(tokenizer: Any) -> dict[str, int]:
    """Text -> id of every token that is a whole word of letters, after a space."""
    if tokenizer not in _WORDS_OF:
        _WORDS_OF[tokenizer] = _find_whole_words(tokenizer)
    return _WORDS_OF[tokenizer]


def whole_words(tokenizer: Any) -> dict[str, int]:
    """The frequent ones of `every_whole_word`, at most `WORD_LIMIT`."""
    return dict(islice(every_whole_word(tokenizer).items(), WORD_LIMIT))


def _find_whole_words(tokenizer: Any) -> dict[str, int]:
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # what joins tokens to a string leaves CLIP's "</w>" standing; `decode` takes it off, but not
    # that of a copied tokenizer (transformers 5 patches it into the instance)
    decoded = [tokenizer.decode([i]).removesuffix(END_OF_WORD).strip() for _, i in tokens]
    texts = [text for text in dict.fromkeys(decoded) if len(text) > 1 and text.isalpha()]
    if not texts:
        return {}
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    encoded = tokenizer([f"a {text}" for text in texts], add_special_tokens=False)["input_ids"]
    found = {}
    for text, ids in zip(texts, encoded, strict=True):
        # a piece of words may have the same letters as a word, and stand before it
        if len(ids) == len(before) + 1 and ids[:-1] == before:
            found[text] = ids[-1]
    return found


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


@dataclass(frozen=True)
class Stranger:
    """Tokens that stand in for a word of a name."""

    ids: tuple[int, ...]
    before: tuple[int, ...] = ()
    """Of a word ahead of the name."""


def find_strangers(tokenizer: Any, words: Mapping[str, int], most: int) -> list[Stranger]:
    """Words of one token, and words and names of the lists, whose tokens may be several.

    Args:
        tokenizer: Of one encoder.
        words: Text -> id, evenly drawn from.
        most: A fifth are from the lists, every other one of them with another ahead of the name.
    """
    found = [Stranger((token,)) for token in spread(list(words.values()), most - most // LISTED_IN)]
    listed = spread(sorted(english_words()), 2 * (most // LISTED_IN))
    start = tokenizer("a", add_special_tokens=False)["input_ids"]
    encoded = tokenizer([f"a {text}" for text in listed], add_special_tokens=False)["input_ids"]
    tokens = [tuple(ids[len(start) :]) for ids in encoded]
    for i, (ids, before) in enumerate(zip(tokens[::2], tokens[1::2], strict=False)):
        found.append(Stranger(ids, before if i % 2 else ()))
    return found


def prompts_with_strangers(
    path: TextPath,
    prompt: str,
    span: Sequence[int],
    other: int,
    strangers: Sequence[Stranger],
) -> Iterator[tuple[Tokens, int, int]]:
    """The prompt once per stranger, in batches of one length.

    Args:
        path: Of one encoder.
        prompt: It holds a name.
        span: The token positions of the name.
        other: The one of them at which the strangers stand.
        strangers: What stands there, and ahead of the name; the token itself is left out.

    Yields:
        The prompts, how many tokens were added ahead of the name, and how many at `other`.
    """
    one = path.tokens([prompt])
    stop = max(span) + 2
    if one.mask is not None:
        stop = max(stop, int(one.mask[0].nonzero().max()) + 1)
    row = one.ids[0, :stop].tolist()
    shapes: dict[tuple[int, int], list[Stranger]] = {}
    for stranger in strangers:
        shape = len(stranger.before), len(stranger.ids)
        strange = stranger.ids != (row[other],)
        if strange and sum(shape) + stop - 1 <= one.ids.shape[1]:
            shapes.setdefault(shape, []).append(stranger)
    for (ahead, count), mine in shapes.items():
        ids = torch.tensor([_put_in(row, min(span), other, s) for s in mine], dtype=one.ids.dtype)
        mask = None
        if one.mask is not None:
            added = one.mask.new_ones(1, ahead + count - 1)
            mask = torch.cat([added, one.mask[:, :stop]], 1).repeat(len(mine), 1)
        yield Tokens(ids, mask), ahead, count - 1


def _put_in(row: Sequence[int], first: int, other: int, stranger: Stranger) -> list[int]:
    return [
        *row[:first],
        *stranger.before,
        *row[first:other],
        *stranger.ids,
        *row[other + 1 :],
    ]


def position_of_word(path: TextPath, frame: str) -> tuple[str, int] | None:
    """The frame filled with a word of one token, and the token position of that word.

    None where no word of the vocabulary keeps its token in this frame.
    """
    for word, token_id in whole_words(tokenizer_of(path)).items():
        prompt = frame.format(word)
        places = (path.tokens([prompt]).ids[0] == token_id).nonzero()
        if len(places) == 1:
            return prompt, int(places[0])
    return None
