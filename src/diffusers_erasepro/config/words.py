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
_ARTICLE_OF_NOUN = re.compile(r"(?:[Aa]n?|[Tt]he) +(?=[^\W\d_])")
_POSSESSIVE = ("'s", "\u2019s")
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
_ONE_NUMBER = frozenset(
    {
        "cattle",
        "clothing",
        "equipment",
        "furniture",
        "information",
        "jewellery",
        "jewelry",
        "luggage",
        "money",
        "music",
        "police",
        "poultry",
        "software",
        "traffic",
    }
)
"""Have neither a plural nor a singular."""
_SPELT_OUT = frozenset({"FAQ", "HIV", "LED", "NES", "SOS", "SUV"})
"""Begin with a letter that is spoken with a vowel, though they look like words."""


@dataclass(frozen=True)
class Form:
    """Another way to write a name."""

    text: str
    kind: str
    """"plural", "singular", "noun" (without the article), "possessive", "capitals", "hyphen" or
    "space" (instead of the hyphen)."""


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


def count_noun(count: int, noun: str) -> str:
    """ "one caption" or "2 captions": a number of what has a plural in s."""
    return f"one {noun}" if count == 1 else f"{count} {noun}s"


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
    if word.rstrip("s") in _SPELT_OUT:
        return "an"
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


def noun_of(name: str) -> str:
    """The name without the article it begins with: "cat" of "a cat".

    A capital behind the article makes it part of a name: "The Beatles".
    """
    article = _ARTICLE_OF_NOUN.match(name)
    return name[article.end() :] if article and name[article.end()].islower() else name


@lru_cache(16384)
def other_number(name: str) -> Form | None:
    """The plural of an English noun, or the singular of one; None where they are one word.

    An article goes: "cats" of "a cat".
    """
    name = noun_of(name)
    if not _is_inflected(name):
        return None
    head, last = _split_last(name)
    if last.casefold() in _ONE_NUMBER:
        return None
    kind = "singular" if is_plural(name) else "plural"
    other = _singular(last) if kind == "singular" else _plural_in(name, last)
    return None if other == last else Form(head + other, kind)


def numbers_of(name: str, *, countable: bool) -> tuple[str, ...]:
    """A name without its article, its plural, and of a noun in the plural the singular.

    What only a reader of captions needs: a name that has no plural by its kind has one here.
    """
    noun = noun_of(name)
    other = other_number(noun)
    found = [noun]
    if other and (countable or other.kind == "plural"):
        found.append(other.text)
    if _is_inflected(noun) and not is_plural(noun):
        found.append(f"{noun}s")
    return tuple(dict.fromkeys(found))


@lru_cache(16384)
def forms_of(name: str, *, countable: bool, noun: bool = True) -> tuple[Form, ...]:
    """What else a name is written like, by rule; first come the forms with other letters.

    A noun with an article has the forms of the bare noun, and that is one of them.

    Args:
        name: The words of a concept.
        countable: Whether it is a noun that has a plural.
        noun: Whether it is a noun, which has a possessive.
    """
    forms = []
    number = other_number(name) if countable else None
    if number:
        forms.append(number)
    if noun_of(name) != name:
        name = noun_of(name)
        forms.append(Form(name, "noun"))
    if noun and _is_inflected(name):
        forms.append(Form(possessive_of(name), "possessive"))
    forms += _rehyphenated(name)
    if name != name.upper() and name.isascii():
        first = name[0].upper() + name[1:] if name == name.lower() else name.lower()
        forms.append(Form(first, "capitals"))
        forms.append(Form(name.upper(), "capitals"))
    return tuple(forms)


def possessive_of(name: str) -> str:
    """ "Nike's", "the Simpsons'"."""
    return f"{name}'" if is_plural(name) and name.endswith("s") else f"{name}'s"


def _is_inflected(name: str) -> bool:
    """Whether an English ending can follow: no "McDonald's", and no number without a letter."""
    if not name.isascii() or name.casefold().endswith(_POSSESSIVE):
        return False
    return name[-1:].isalpha() or (name[-1:].isdigit() and any(c.isalpha() for c in name))


def _rehyphenated(name: str) -> list[Form]:
    """The name with its hyphens as spaces, or its spaces as hyphens."""
    if "-" in name:
        return [Form(name.replace("-", " "), "space")]
    return [Form(name.replace(" ", "-"), "hyphen")] if " " in name else []


def _split_last(name: str) -> tuple[str, str]:
    """All but the last word, and that."""
    at = max(name.rfind(" "), name.rfind("-")) + 1
    return name[:at], name[at:]


def _plural_in(name: str, last: str) -> str:
    """The plural of the last word of a name, as it is written there."""
    if last[-1].isdigit():
        return f"{last}s"
    if last.isupper() and len(last) > 1 and (last == name or not name.isupper()):
        return f"{last}s"  # SUVs
    plural = _plural(last)
    regular = plural.startswith(last) or plural.endswith("ies")
    if not regular and " " in name and name.istitle():
        return f"{last}s"  # two Mickey Mouses
    return plural


def _plural(word: str) -> str:
    return str(_engine().plural_noun(word) or word)


def _singular(word: str) -> str:
    return str(_engine().singular_noun(word) or word)
