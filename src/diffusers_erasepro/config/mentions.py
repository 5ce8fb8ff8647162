"""Whether a text mentions a concept, and where: one rule for the whole product.

A text mentions a concept if it holds the concept's words in a row, as a reader would see them:

- Case, Unicode composition, full or half width and invisible characters make no difference.
- A word ends where Unicode's word boundaries (UAX 29) end it, and also at a hyphen, an apostrophe,
  an underscore or any other punctuation: "star-shaped", "red_star", "(star:1.3)" and "l'étoile"
  name the star or the étoile; "starfish" and "started" do not. Inside a number ("3.5") and in an
  English contraction ("can't") punctuation ends no word.
- Another word is another word: "stars" does not name "star". Give the plural as a synonym. What
  only marks a case leaves the word what it is: "star's", and Korean particles ("고양이가").
- Vowel signs and other marks belong to their letter: रूमी does not name राम.
- Scripts that put no spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar and their like)
  have no boundaries to ask for: 一只黑猫 names 猫. Graphemes are never cut.
- Punctuation counts as a space, and so do symbols unless the concept itself holds one: "AT&T", "🔫"
  and "$100" are found only with theirs. A one-letter name keeps its sign: "C", "C++" and "C#" are
  three names. An emoji is its whole sequence: 👩 is not named by 👩‍🚀.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import regex

LETTER, DENSE, SYMBOL, PUNCTUATION, SPACE = "letter", "dense", "symbol", "punctuation", "space"
"""Kinds of graphemes; dense ones are letters of a script without spaces between words."""
_WORDS = frozenset({LETTER, DENSE})
_SPACELESS = regex.compile(
    r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Yi}\p{scx=Tangut}\p{scx=Nushu}"
    r"\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}\p{sc=Tibetan}\p{sc=Javanese}\p{sc=Balinese}"
    r"\p{lb=SA}]"
)
_EMOJI = regex.compile(r"\p{Extended_Pictographic}|\p{Regional_Indicator}|\u20e3")
_IGNORED = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}--\u200b]", regex.V1)
_SELECTORS = regex.compile("[\ufe0e\ufe0f]")
_SIGNS = frozenset("&@#%‰§†‡")
"""Punctuation to Unicode, a symbol to a reader."""
_INSIDE_WORDS = regex.compile(
    r"(?<=n)['\u2019](?=t\b)"  # can't
    r"|(?<=\p{L})['\u2019](?=(?:ll|re|ve|m|d)\b)"  # we'll
    r"|(?<=\p{Nd})[.,](?=\p{Nd})"  # 3.5
    r"|(?<=(?<![\p{L}\p{M}\p{N}])\p{L})(?:\+\+|\#)(?!\p{L})"  # C++, C#
    r"|(?<=(?<![\p{L}\p{M}\p{N}])\p{L})\+(?![\p{L}\p{N}+])",  # A+
    regex.IGNORECASE,
)
_ACCENT = regex.compile(r"(?<=\p{Latin}\p{Mn}*)\p{Mn}")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_DIGIT = regex.compile(r"\p{N}")
_JOINABLE = regex.compile(r"[\p{Latin}\p{N} \-\u2010\u2011]+")
_HYPHEN = regex.compile(r"(?<=[\p{L}\p{M}\p{N}])[\-\u2010\u2011](?=[\p{L}\p{N}])")
_PARTICLE = regex.compile(
    r"(?:에서|에게|한테|에|으로|로|까지|부터|보다|처럼|하고|이랑|랑|와|과|의)?"
    r"(?:은|는|이|가|을|를|도|만|의)?"
)
"""What Korean writes behind a noun to mark its case."""


@dataclass(frozen=True)
class _Grapheme:
    text: str
    """As compared: folded."""
    kind: str
    start: int
    stop: int
    """Characters `[start, stop)` of the original text."""


@dataclass(frozen=True)
class _Line:
    """A text as it is compared: folded graphemes, one space wherever a word or symbol ends."""

    text: str
    starts: dict[int, tuple[int, str]]
    """Index in `text` where a grapheme begins -> its first character in the original, its kind."""
    stops: dict[int, tuple[int, str]]
    """Index in `text` where a grapheme ends -> the end in the original, its kind."""


class Mentions:
    """The texts that mention one of some concepts: `text in Mentions(words)`."""

    def __init__(self, words: Iterable[str]) -> None:
        self._names: dict[frozenset[str], list[_Name]] = {}
        for word in words:
            name = _Name.of(word)
            self._names.setdefault(name.counted, []).append(name)

    def __contains__(self, text: str) -> bool:
        for counted, names in self._names.items():
            line = _line_of(text, counted).text
            if any(name.line.text in line and name.find(text) for name in names):
                return True
        return False


class LooseMentions:
    """The texts that mention one of some names, however they spell it.

    Beside what `Mentions` finds these are the name in one word ("spiderman", "golfballs"), with a
    hyphen where it has none, and without its accents ("beyonce"). Two words do not name what is
    written as one: a "high water mark" is no watermark; a number may stand apart ("AK 47"). The
    text may have accents of its own where the name is proper: "Beyoncé" names Beyonce, "rosé" does
    not name the rose.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = tuple(names)
        proper = [name for name in names if name != name.lower()]
        self._mentions = Mentions(dict.fromkeys([*names, *map(_without_accents, names)]))
        self._proper = Mentions(map(_without_accents, proper))
        self._joined = _joined(names)
        self._proper_joined = _joined(proper)

    def __contains__(self, text: str) -> bool:
        if text in self._mentions or not self._joined.isdisjoint(_words_joined(text)):
            return True
        plain = _without_accents(text)
        if plain == text:
            return False
        return plain in self._proper or not self._proper_joined.isdisjoint(_words_joined(plain))


def mentions(text: str, concept: str) -> bool:
    """Whether `text` mentions `concept`."""
    return find_mention(text, concept) is not None


def find_mention(text: str, concept: str) -> tuple[int, int] | None:
    """Characters `[start, stop)` of the first mention of `concept` in `text`, or None."""
    return _Name.of(concept).find(text)


def replace_mentions(text: str, concept: str, replacement: str) -> str:
    """`text` with every mention of `concept` replaced."""
    name = _Name.of(concept)
    parts = []
    done = 0
    while (found := name.find(text, done)) is not None:
        parts += [text[done : found[0]], replacement]
        done = found[1]
    return "".join([*parts, text[done:]])


def same_words(a: str, b: str) -> bool:
    """Whether two texts are the same words, case, spacing and composition aside."""
    return spelling(a) == spelling(b)


def spelling(text: str) -> str:
    """What two texts of the same words have in common."""
    folded = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


@lru_cache(8192)
def _without_accents(text: str) -> str:
    """Without the marks of Latin letters; those of other scripts make other letters."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFD", text)))


def _joined(names: Iterable[str]) -> frozenset[str]:
    """The names, each in one word, with and without accents."""
    found = []
    for name in names:
        for written in (name, _without_accents(name)):
            if _JOINABLE.fullmatch(unicodedata.normalize("NFC", written)):
                found.append("".join(_WORD.findall(spelling(written))))
    return frozenset(found) - {""}


@lru_cache(8192)
def _words_joined(text: str) -> frozenset[str]:
    """The words of a text, also those with a hyphen and those beside a number as one."""
    folded = spelling(text)
    words = _WORD.findall(folded)
    found = [*words, *_WORD.findall(_HYPHEN.sub("", folded))]
    for first, second in pairwise(words):
        if _DIGIT.search(first + second):
            found.append(first + second)
    return frozenset(found)


@dataclass(frozen=True)
class _Name:
    """A concept's words as they are looked for."""

    line: _Line
    counted: frozenset[str]
    """Kinds that count; all others are spaces."""

    @classmethod
    @lru_cache(4096)
    def of(cls, words: str) -> _Name:
        kinds = {grapheme.kind for grapheme in _graphemes(words)}
        counted = _WORDS
        if SYMBOL in kinds:
            counted |= {SYMBOL}
        elif not kinds & _WORDS:
            counted |= {SYMBOL, PUNCTUATION}
        return cls(_line_of(words, counted), counted)

    def find(self, text: str, begin: int = 0) -> tuple[int, int] | None:
        """Characters `[start, stop)` of the first mention in `text` from `begin` on."""
        if not self.line.text:
            return None
        line = _line_of(text, self.counted)
        at = line.text.find(self.line.text)
        while at >= 0:
            stop = at + len(self.line.text)
            if self._whole(line, at, stop) and line.starts[at][0] >= begin:
                return line.starts[at][0], line.stops[stop][0]
            at = line.text.find(self.line.text, at + 1)
        return None

    def _whole(self, line: _Line, at: int, stop: int) -> bool:
        """Whether neither a grapheme nor a word goes on across an end of `[at, stop)`."""
        if at not in line.starts or stop not in line.stops:
            return False
        if line.starts[at][1] == LETTER and line.text[at - 1 : at].strip():
            return False
        if line.stops[stop][1] != LETTER:
            return True
        rest = line.text[stop:].split(" ", 1)[0]
        return _PARTICLE.fullmatch(rest) is not None


@lru_cache(8192)
def _line_of(text: str, counted: frozenset[str]) -> _Line:
    parts: list[str] = []
    starts: dict[int, tuple[int, str]] = {}
    stops: dict[int, tuple[int, str]] = {}
    length = 0
    before = SPACE
    for grapheme in _graphemes(text):
        kind = grapheme.kind if grapheme.kind in counted else SPACE
        joined = kind == before and kind in _WORDS
        if length and not joined and parts[-1] != " ":
            parts.append(" ")
            length += 1
        before = kind
        if kind == SPACE:
            continue
        starts[length] = (grapheme.start, kind)
        parts.append(grapheme.text)
        length += len(grapheme.text)
        stops[length] = (grapheme.stop, kind)
    return _Line("".join(parts).rstrip(" "), starts, stops)


def _graphemes(text: str) -> Iterator[_Grapheme]:
    """The graphemes of `text` that a reader sees."""
    glued: set[int] = set()
    for found in _INSIDE_WORDS.finditer(text):
        glued |= {*range(*found.span())}
    for found in regex.finditer(r"\X", text):
        start, stop = found.span()
        folded = _fold(found.group())
        if start in glued:
            yield _Grapheme(folded.replace("\u2019", "'"), LETTER, start, stop)
            if folded in "+#" and stop not in glued:  # C++17 names C++
                yield _Grapheme(" ", SPACE, stop, stop)
        elif folded:
            yield _Grapheme(folded, _kind(folded), start, stop)


@lru_cache(8192)
def _fold(grapheme: str) -> str:
    """A grapheme as it is compared; empty if it is invisible."""
    if grapheme.isascii():
        return grapheme.lower()
    if _EMOJI.search(grapheme):
        return _SELECTORS.sub("", grapheme)
    seen = _IGNORED.sub("", grapheme)
    if any(unicodedata.decomposition(c).startswith(("<wide>", "<narrow>")) for c in seen):
        seen = unicodedata.normalize("NFKC", seen)
    folded = unicodedata.normalize("NFD", seen).casefold()
    folded = unicodedata.normalize("NFC", folded)
    return folded.replace("i\u0307", "i")  # what Turkish İ becomes


@lru_cache(8192)
def _kind(folded: str) -> str:
    if "\u20e3" in folded:  # a keycap
        return SYMBOL
    category = unicodedata.category(folded[0])
    if category[0] in "LMN":
        return DENSE if _SPACELESS.match(folded) else LETTER
    if category[0] == "S" or folded[0] in _SIGNS:
        return SYMBOL
    return PUNCTUATION if category[0] == "P" else SPACE
