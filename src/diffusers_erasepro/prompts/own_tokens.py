"""Which tokens of a name only that name uses.

The embedding row of such a token can become another's, and nothing else changes. Where it is not
sure that a token is the name's own, it counts as shared: what is done instead costs little, and a
row that others use costs them their meaning. A token is the name's own unless one of these holds:

- The tokenizer does not know it, it is a part of a letter, or it has fewer than three letters.
- It is a part of a word: names that no list holds are spelled with such pieces.
- A text to keep uses it: a caption, an anchor, a template. Texts that mention the concept do not
  count, for "a gun on a table" says nothing against the token of "gun"; near phrases always count.
- It is the first of several words, a given name or a maker that others bear too ("Vladimir"), or
  stands behind a preposition ("Nintendo" of "Mario from Nintendo"). A word that names the concept
  alone is excepted ("Starbucks" of "Starbucks Coffee").
- It is a whole word of another concept of the spec.
- It is one of 45,000 English words (SCOWL up to size 40) or of 7,200 given names and surnames that
  many people bear (`words.txt`, `names.txt`), or a very common word (size 10) holds it. So "swift",
  "taylor" and "van" are shared, and "gogh" and "rembrandt" are own. The words of the concept itself
  are excepted if they are written without capitals: "cat" means the word, "Apple" a proper name
  beside which the plain word has another meaning.
- Its script is not Latin: there is no list to ask.

The tokens of a textual inversion of several vectors are its own, unless a text to keep names it.

The token of a whole word can be a part of longer, less common ones: the first of them in word-piece
vocabularies ("cat" of "catnip"), the last in CLIP's ("gun" of "handgun"). `NameToken.inside` lists
them.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import regex

from ..config.mentions import Mentions
from ..config.spec import AUTO_ANCHOR, Concept, ErasureSpec
from ..config.words import SLOT, other_number
from .learned_tokens import expand, expansions_of
from .unknown_tokens import unknown_ids

SHORTEST = 3
"""Letters of a token that can be a name's own."""
BATCH = 256
"""Texts that are tokenized at once while a use is looked for."""
CONTEXTS = ("a {}", "{}", "({})", '"{}"')
"""Around a name: a sentence, the start of a text, and what may be joined with it."""
PREPOSITIONS = frozenset({"at", "by", "for", "from", "in", "of", "on", "with"})
SPACES = ("▁", "Ġ")
"""Tokens that are a space and nothing else."""
WORD_CONTEXTS = ("a {}", "{}", "-{}")
VERY_COMMON = "10"
"""The size of SCOWL whose longer words count against a whole word's token."""
LISTED_EXAMPLES = 5


@dataclass(frozen=True)
class NameToken:
    """A token of a name."""

    id: int
    text: str
    """The characters of the name that it covers."""
    own: bool
    why: str = ""
    """Who else uses it; empty if it is own."""
    inside: tuple[str, ...] = ()
    """If it is own: less common, longer words that hold it all the same, at most five."""


@dataclass(frozen=True)
class OwnTokens:
    """The tokens of a name, in every way that the tokenizer may write it."""

    name: str
    spellings: tuple[tuple[NameToken, ...], ...]
    """Each sequence of tokens once, the one of a plain sentence first: at the start of a text,
    after a space or a bracket; as given, in lower case, in upper case, with capitals."""

    @property
    def plain(self) -> tuple[NameToken, ...]:
        """The name's tokens in a plain sentence."""
        return self.spellings[0]

    @property
    def complete(self) -> bool:
        """Whether every token of the name, in a plain sentence, is its own."""
        return bool(self.plain) and all(token.own for token in self.plain)

    @property
    def rows(self) -> dict[int, NameToken]:
        """The tokens by id that are own wherever a spelling has them."""
        found: dict[int, NameToken] = {}
        shared = set()
        for tokens in self.spellings:
            found |= {token.id: token for token in tokens if token.own}
            shared |= {token.id for token in tokens if not token.own}
        return {token_id: token for token_id, token in found.items() if token_id not in shared}


def own_tokens(
    tokenizer: Any,
    name: str,
    texts: Sequence[str],
    *,
    synonyms: Sequence[str] = (),
    near: Sequence[str] = (),
    taken: Mapping[int, str] | None = None,
) -> OwnTokens:
    """The tokens of a name, and which are its own.

    Args:
        tokenizer: A fast tokenizer of transformers.
        name: The words to erase, a proper name with its capitals.
        texts: What must stay: captions, anchors, templates. Those that mention the name or a
            synonym do not count.
        synonyms: Other words of the same concept.
        near: Phrases that must stay though they may hold the name's words, all of them.
        taken: Tokens that others use, by id, and who does.
    """
    words = dict.fromkeys((name, *synonyms))
    judge = _Judge(tokenizer, tuple(words), tuple(texts), tuple(near), dict(taken or {}))
    spellings: dict[tuple[int, ...], tuple[NameToken, ...]] = {}
    known: dict[_Token, NameToken] = {}
    for tokens in _spellings(tokenizer, name):
        ids = tuple(token.id for token in tokens)
        if ids in spellings:
            continue
        for token in tokens:
            if token not in known:
                known[token] = judge.decide(token)
        spellings[ids] = tuple(known[token] for token in tokens)
    return OwnTokens(name, tuple(spellings.values()))


def own_tokens_of(spec: ErasureSpec, tokenizer: Any) -> dict[str, OwnTokens]:
    """The tokens of every word of a spec and of its other number, and which are the word's own.

    What must stay is all that the edit is given to keep: captions, anchors, templates, near
    phrases. What is only measured is not looked at.
    """
    texts = [*spec.every_caption(), *spec.keep]
    owners: dict[int, dict[str, None]] = {}
    for concept in spec.concepts:
        texts += [phrase.replace(SLOT, " ") for phrase in (*concept.exact, *concept.soft)]
        texts += concept.near_prompts()
        texts += [] if concept.anchor == AUTO_ANCHOR else [concept.anchor]
        for word in _words_of(concept):
            for tokens in _spellings(tokenizer, word):
                for token in tokens:
                    if token.whole:
                        owners.setdefault(token.id, {})[concept.target] = None
    kept = tuple(dict.fromkeys(texts))
    found = {}
    for concept in spec.concepts:
        taken = {}
        for token_id, targets in owners.items():
            others = [target for target in targets if target != concept.target]
            if others:
                taken[token_id] = f"erased too: {others[0]!r}"
        words = _words_of(concept)
        near = (*spec.near, *concept.near_prompts())
        for word in words:
            found[word] = own_tokens(tokenizer, word, kept, synonyms=words, near=near, taken=taken)
    return found


def _words_of(concept: Concept) -> tuple[str, ...]:
    """The words of a concept, and their plural or singular."""
    numbers = [form.text for _, form in concept.forms if form.kind in ("plural", "singular")]
    return (*concept.words, *numbers)


@dataclass(frozen=True)
class _Token:
    """A token of a name, not yet judged."""

    id: int
    letters: str
    """What it covers, as compared, from its first letter to its last."""
    text: str
    whole: bool
    """Whether it is a whole word of the name."""
    beside: str
    """Why it may be no more than company of the name; empty if it may not."""
    joined: bool
    """Whether it also covers what stands around the name."""
    split: bool
    """Whether it is a part of a letter."""


def _spellings(tokenizer: Any, name: str) -> Iterator[list[_Token]]:
    """The name's tokens in all contexts and cases; some are the same."""
    title = " ".join(word[:1].upper() + word[1:] for word in name.split(" "))
    cases = dict.fromkeys(
        (name, name.lower(), name.upper(), name[:1].upper() + name[1:], title, title.title())
    )
    learned = expansions_of(tokenizer)
    written = dict.fromkeys(expand(case, learned) for case in cases)
    texts = [(context, case) for context in CONTEXTS for case in written]
    batch = _encode(tokenizer, [context.format(case) for context, case in texts])
    used = set().union(*batch["input_ids"])
    blank = {token_id for token_id in used if tokenizer.convert_ids_to_tokens(token_id) in SPACES}
    for (context, case), ids, offsets in zip(
        texts, batch["input_ids"], batch["offset_mapping"], strict=True
    ):
        start = context.index("{")
        row = [(i, at) for i, at in zip(ids, offsets, strict=True) if i not in blank]
        yield _tokens_within(context.format(case), start, start + len(case), row)


def _tokens_within(
    text: str, start: int, stop: int, row: Sequence[tuple[int, tuple[int, int]]]
) -> list[_Token]:
    """The tokens, of `row` with their offsets, that cover characters `[start, stop)` of `text`."""
    spans = []
    for token_id, (first, last) in row:
        covered = text[first:last]
        first += len(covered) - len(covered.lstrip())
        last -= len(covered) - len(covered.rstrip())
        if first < stop and last > start and first < last:
            spans.append((token_id, first, last))
    found = []
    for i, (token_id, first, last) in enumerate(spans):
        before = spans[i - 1][2] if i else start
        after = spans[i + 1][1] if i + 1 < len(spans) else stop
        covered = text[first:last]
        found.append(
            _Token(
                id=token_id,
                letters=regex.sub(r"^\P{L}+|\P{L}+$", "", _without_accents(covered)),
                text=covered,
                whole=not (text[first - 1 : first].isalnum() or text[last : last + 1].isalnum()),
                beside=_beside(text[start:first], text[last:stop]),
                joined=first < start or last > stop,
                split=before > first or after < last,
            )
        )
    return found


def _beside(before: str, behind: str) -> str:
    """What a token is whose name has these words before it and behind it."""
    words = re.split(r"[\s-]+", before)
    if not PREPOSITIONS.isdisjoint(map(str.lower, words)):
        return "behind a preposition"
    if words == [before] and re.search(r"[\s-]", behind):
        return "first of several words"
    return ""


class _Judge:
    """Decides for the words of a concept which of their tokens others use."""

    def __init__(
        self,
        tokenizer: Any,
        words: tuple[str, ...],
        texts: tuple[str, ...],
        near: tuple[str, ...],
        taken: dict[int, str],
    ) -> None:
        forms: list[str] = []
        for word in words:
            forms += _numbers(word)
        self.tokenizer = tokenizer
        self.mentioned = Mentions(forms)
        self.plain = {_without_accents(form) for form in forms if form == form.lower()}
        self.alone = {_without_accents(form) for form in forms}
        self.unknown = unknown_ids(tokenizer)
        written = " ".join(expansions_of(tokenizer).values())
        self.learned = {*_encode(tokenizer, [written])["input_ids"][0]}
        self.texts = _search(texts)
        self.near = _search(near)
        self.taken = taken

    def decide(self, token: _Token) -> NameToken:
        """The token with what speaks against it, if anything does."""
        inside: tuple[str, ...] = ()
        if token.id in self.learned:
            why = self.taken.get(token.id, "") or self._used_in_texts(token)
            return NameToken(token.id, token.text, not why, why)
        why = self._unfit(token) or self._used_in_texts(token)
        if not why:
            why, inside = self._used_in_words(token)
        return NameToken(token.id, token.text, not why, why, inside)

    def _unfit(self, token: _Token) -> str:
        letters = regex.findall(r"\p{L}", token.letters)
        if token.id in self.unknown:
            return "not known to the tokenizer"
        if token.split:
            return "part of a letter"
        if token.joined:
            return "joined with what stands around the name"
        if letters and not all(regex.match(r"\p{Latin}", letter) for letter in letters):
            return "no list of words in its script"
        if len(letters) < SHORTEST:
            return f"fewer than {SHORTEST} letters"
        if not token.whole:
            return "part of a word"
        if token.beside and token.letters not in self.alone:
            return token.beside
        return self.taken.get(token.id, "")

    def _used_in_texts(self, token: _Token) -> str:
        for text in self._users(token, self.near):
            return f"near: {text[:60]!r}"
        for text in self._users(token, self.texts):
            if text not in self.mentioned:
                return f"kept: {text[:60]!r}"
        return ""

    def _users(self, token: _Token, texts: _Search) -> Iterator[str]:
        """The texts that hold the token."""
        found = texts.holding(token.letters)
        for i in range(0, len(found), BATCH):
            batch = found[i : i + BATCH]
            for text, ids in zip(batch, _encode(self.tokenizer, batch)["input_ids"], strict=True):
                if token.id in ids:
                    yield text

    def _used_in_words(self, token: _Token) -> tuple[str, tuple[str, ...]]:
        """What a listed word says against the token; or else longer words that hold it."""
        inside: dict[str, None] = {}
        for heading, words in _word_lists().items():
            for word, longer in self._words_with(token, words):
                if not longer:
                    return f"{'name' if heading == 'names' else 'word'}: {word!r}", ()
                if heading == VERY_COMMON:
                    return f"common word: {word!r} holds it", ()
                inside[word] = None
        return "", tuple(inside)[:LISTED_EXAMPLES]

    def _words_with(self, token: _Token, words: _Search) -> Iterator[tuple[str, bool]]:
        """Listed words that hold the token, and whether they are longer than it."""
        found = [word for word in words.holding(token.letters) if word not in self.plain]
        for i in range(0, len(found), BATCH):
            texts = []
            for word in found[i : i + BATCH]:
                for case in (word, word.capitalize(), word.upper()):
                    texts += [(word, context.format(case)) for context in WORD_CONTEXTS]
            batch = _encode(self.tokenizer, [text for _, text in texts])
            for (word, text), ids, offsets in zip(
                texts, batch["input_ids"], batch["offset_mapping"], strict=True
            ):
                if token.id in ids:
                    first, last = offsets[ids.index(token.id)]
                    yield word, len(text[first:last].strip()) < len(word)


class _Search:
    """Texts in which letters are looked for, case and accents aside."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.texts = texts
        self.starts: list[int] = []
        parts = []
        length = 0
        for text in texts:
            self.starts.append(length)
            parts.append(_without_accents(text) + "\n")
            length += len(parts[-1])
        self.joined = "".join(parts)

    def holding(self, letters: str) -> list[str]:
        """The texts that hold these letters in a row."""
        found = []
        at = self.joined.find(letters)
        while at >= 0:
            index = bisect_right(self.starts, at) - 1
            found.append(self.texts[index])
            if index + 1 == len(self.starts):
                break
            at = self.joined.find(letters, self.starts[index + 1])
        return found


@lru_cache(16)
def _search(texts: tuple[str, ...]) -> _Search:
    return _Search(texts)


@lru_cache(1)
def _word_lists() -> dict[str, _Search]:
    """Heading -> its words: SCOWL's sizes, the most common first, and "names"."""
    lists = _read_list("words.txt") | _read_list("names.txt")
    return {heading: _search(words) for heading, words in lists.items()}


@lru_cache(1)
def english_words() -> frozenset[str]:
    """The words and names of the lists, in small letters."""
    found: set[str] = set()
    for texts in (_read_list("words.txt") | _read_list("names.txt")).values():
        found |= {text.casefold() for text in texts}
    return frozenset(found)


def _read_list(file: str) -> dict[str, tuple[str, ...]]:
    """The words under each heading of a list."""
    found: dict[str, list[str]] = {}
    for line in (files(__package__) / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            heading = found.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            heading += line.split()
    return {key: tuple(words) for key, words in found.items()}


def _encode(tokenizer: Any, texts: Sequence[str]) -> Any:
    """Ids and offsets without special tokens, not truncated."""
    return tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )


def _numbers(word: str) -> tuple[str, ...]:
    """A word, its plural and its singular."""
    number = other_number(word)
    return (word, number.text) if number else (word,)


def _without_accents(text: str) -> str:
    """Without case and accents, so that letters are found however a tokenizer reads them."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in apart if unicodedata.category(c) != "Mn")
