"""The words of the pictures world, as its distribution carries them."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import ErasureError

DISTRIBUTION = "diffusers_erasepro_pictures"


@dataclass(frozen=True)
class Thing:
    """One thing of the world."""

    hands: tuple[str, ...]
    """Who draws it."""
    synonyms: tuple[str, ...]
    """CLDR's keywords that name this thing; no pipeline was trained on them."""
    related: tuple[str, ...]
    """CLDR's other keywords of this thing; no pipeline was trained on them either."""


def folder() -> Path:
    """Where the distribution keeps its files.

    Raises:
        ErasureError: It is not installed.
    """
    found = importlib.util.find_spec(DISTRIBUTION)
    if found is None or found.origin is None:
        raise ErasureError(
            "the pictures world is not installed; `pip install diffusers-erasepro-pictures`, or "
            "`pip install worlds/pictures` from a clone of the repository, brings it"
        )
    return Path(found.origin).parent


def things() -> tuple[str, ...]:
    """The names of all things, in the order of the judge's answers."""
    return tuple(_table())


def hands(thing: str) -> tuple[str, ...]:
    """The hands that draw this thing."""
    return _entry(thing).hands


def synonyms(thing: str) -> tuple[str, ...]:
    """CLDR's keywords that name this thing, as "kitty" does; no pipeline was trained on them.

    Raises:
        ErasureError: No such thing; the message has the nearest names.
    """
    return _entry(thing).synonyms


def nearest(word: str) -> list[str]:
    """Things that a word may have meant: it names them, or is spelled much like a name of them."""
    word = word.lower()
    meant = [
        name
        for name, thing in _table().items()
        if word in name.split() or word in thing.synonyms + thing.related
    ]
    named: dict[str, str] = {}
    for name, thing in _table().items():
        named |= dict.fromkeys((*thing.synonyms, name), name)
    spelled = [named[known] for known in difflib.get_close_matches(word, named, n=3)]
    return list(dict.fromkeys(meant + spelled))[:5]


def _entry(thing: str) -> Thing:
    if not isinstance(thing, str):
        raise ErasureError(
            f"a thing of the pictures world is named by a text, got {type(thing).__name__} "
            f"{thing!r}; see pictures.THINGS"
        )
    entry = _table().get(thing)
    if entry is None:
        near = ", ".join(map(repr, nearest(thing))) or "see pictures.THINGS"
        raise ErasureError(f"{thing!r} is no thing of the pictures world; nearest: {near}")
    return entry


@functools.cache
def _table() -> dict[str, Thing]:
    entries = json.loads((folder() / "things.json").read_text("utf-8"))
    return {
        name: Thing(tuple(e["hands"]), tuple(e["synonyms"]), tuple(e["related"]))
        for name, e in entries.items()
    }
