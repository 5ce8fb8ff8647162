"""The forms of a name in a sentence: articles, number, possessive, capitals, hyphens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

SLOT = "{}"
"""Where a phrase takes the name."""
_ARTICLE = re.compile(r"(?<![\w'\u2019-])([Aa]n?)( +)(?=\{\})")
_ANY_ARTICLE = re.compile(r"(?<![\w'\u2019-])(?:an?|the)( +)(?=\{\})", re.IGNORECASE)
_OWN_ARTICLE = re.compile(r"(?:an?|the) ", re.IGNORECASE)
NUMBERS = ("plural", "singular")
"""Kinds of `Form` that are other words; the others are the same word to `mentions`."""
_NO_PLURAL = frozenset(
    {
        "alias",
        "atlas",
        "bias",
        "bus",
        "canvas",
        "chaos",
        "christmas",
        "corps",
        "cosmos",
        "diabetes",
        "gas",
        "lens",
        "mars",
        "news",
        "pancreas",
        "pathos",
        "series",
        "species",
        "texas",
        "thermos",
    }
)
"""End in s, and are no plurals."""


@dataclass(frozen=True)
class Form:
    """Another way to write a name."""

    text: str
    kind: str
    """"plural", "singular", "possessive", "capitals" or "hyphen"."""


@cache
def _engine() -> Any:
    """The grammar of `inflect`.

    Its class checks the types of every call by typeguard, which rewrites all methods when the
    module is imported: 3 s of a CPU. Nothing here needs that, so it is left out of the import.
    """
    import typeguard

    checked = typeguard.typechecked
    typeguard.typechecked = lambda target: target  # type: ignore[assignment]
    try:
        import inflect
    finally:
        typeguard.typechecked = checked
    return inflect.engine()


@lru_cache(4096)
def article_of(word: str) -> str:
    """ "a" or "an", as the word is spoken.

    Most words tell by their first letter; `inflect` knows the others: an hour, a unicorn, an X-ray.
    """
    first = word[:1]
    if word.islower() and word.isalpha() and len(word) > 2:
        if first in "bcdfgjklmnpqrstvwxyz":
            return "a"
        if first in "ai" or (first in "eo" and not word.startswith(("eu", "ew", "on"))):
            return "an"
    if not first.isalnum():
        return "a"
    if first.isdigit():
        number = re.match(r"\d+", word)
        spoken = number.group() if number else ""
        return "an" if first == "8" or spoken in ("11", "18") else "a"
    return str(_engine().a(word)).split(" ", 1)[0]


def fill(phrase: str, words: str) -> tuple[str, int]:
    """A phrase with a name in its slot, and the character where the name begins.

    "a {}" becomes "an" where the word asks for it, an article goes where the name has its own or
    is a plural, and an empty name leaves no second space.
    """
    drops = bool(_OWN_ARTICLE.match(words)) or (" " not in words and is_plural(words))
    found = _ANY_ARTICLE.search(phrase) if drops else None
    if found and words and (found.group()[0] in "aA" or _OWN_ARTICLE.match(words)):
        phrase = phrase[: found.start()] + phrase[found.end() :]
    start = phrase.index(SLOT)
    before = phrase[:start]
    after = phrase[start + len(SLOT) :]
    if not words and (not before or before.endswith(" ")) and after.startswith(" "):
        after = after[1:]
    article = _ARTICLE.search(phrase)
    following = re.match(r"[^\W_][\w'\u2019-]*", words or after)
    if article and following:
        right = article_of(following.group())
        right = right.capitalize() if article[1][0] == "A" else right
        before = before[: article.start(1)] + right + before[article.end(1) :]
    return before + words + after, len(before)


@lru_cache(4096)
def is_plural(name: str) -> bool:
    """Whether an English name stands in the plural, by its last word."""
    last = name.split(" ")[-1].split("-")[-1].casefold()
    if not last.isascii() or not last.isalpha() or len(last) < 4 or last in _NO_PLURAL:
        return False
    if last.endswith("s"):
        return not last.endswith(("ss", "us", "is")) and last == _plural(_singular(last))
    return last in ("children", "people", "men", "women", "mice", "geese", "teeth", "feet")


def other_number(name: str) -> Form | None:
    """The plural of an English noun, or the singular of one; None where they are one word."""
    if not name.isascii() or not name[-1:].isalpha():
        return None
    head, last = _split_last(name)
    kind = "singular" if is_plural(name) else "plural"
    other = _singular(last) if kind == "singular" else _plural(last)
    return None if other == last else Form(head + other, kind)


@lru_cache(16384)
def forms_of(name: str, *, countable: bool, noun: bool = True) -> tuple[Form, ...]:
    """What else a name is written like, by rule; first come the forms with other letters.

    Args:
        name: The words of a concept.
        countable: Whether it is a noun that has a plural.
        noun: Whether it is a noun, which has a possessive.
    """
    forms = []
    number = other_number(name) if countable else None
    if number:
        forms.append(number)
    if noun and name.isascii() and name[-1:].isalpha():
        forms.append(Form(possessive_of(name), "possessive"))
    for joined in _rehyphenated(name):
        forms.append(Form(joined, "hyphen"))
    if name != name.upper() and name.isascii():
        first = name[0].upper() + name[1:] if name == name.lower() else name.lower()
        forms.append(Form(first, "capitals"))
        forms.append(Form(name.upper(), "capitals"))
    return tuple(forms)


def possessive_of(name: str) -> str:
    """ "Nike's", "the Simpsons'"."""
    return f"{name}'" if is_plural(name) and name.endswith("s") else f"{name}'s"


def _rehyphenated(name: str) -> list[str]:
    """The name with its hyphens as spaces, or its spaces as hyphens."""
    if "-" in name:
        return [name.replace("-", " ")]
    return [name.replace(" ", "-")] if " " in name else []


def _split_last(name: str) -> tuple[str, str]:
    """All but the last word, and that."""
    at = max(name.rfind(" "), name.rfind("-")) + 1
    return name[:at], name[at:]


def _plural(word: str) -> str:
    return str(_engine().plural_noun(word) or word)


def _singular(word: str) -> str:
    return str(_engine().singular_noun(word) or word)
