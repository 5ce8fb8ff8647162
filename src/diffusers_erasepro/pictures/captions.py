"""Captions of scenes: one or two things, maybe a hand, maybe a background, in many phrasings."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BACKGROUNDS = ("white", "black", "blue", "green", "pink", "yellow", "gray", "red")
STYLES = ("Noto", "Blob", "Twemoji", "Fluent", "Fluent Flat", "EmojiOne", "Firefox")

BACKGROUND_SHARE = 0.65
LONG_SHARE = 1 / 3
MOST_WORDS = 22
"""A caption of at most so many words fits the 32 tokens of the encoder."""

BARE = frozenset(
    (
        "bread",
        "candy",
        "cherries",
        "fire",
        "fork and knife",
        "glasses",
        "grapes",
        "jeans",
        "locked",
        "scissors",
        "tennis",
    )
)
"""Names that take no article."""
VOWELS = ("a", "e", "i", "o", "u", "hour")


@dataclass(frozen=True)
class Caption:
    """A text, and what it says that a picture of it shows."""

    text: str
    things: tuple[str, ...]
    """One thing, or two from left to right."""
    hand: str | None
    """The style that the text names, or None."""
    background: str | None
    """The background that the text names, or None."""


@dataclass(frozen=True)
class Phrasing:
    """Ways to say the parts of a caption; every way has one `{}` for what was said so far."""

    frames: tuple[str, ...]
    hands: tuple[str, ...]
    """`{}` is the text so far, `{hand}` the style."""
    backgrounds: tuple[str, ...]
    """`{}` is the text so far, `{background}` the colour."""
    pairs: tuple[str, ...]
    """What stands between the thing on the left and the thing on the right."""
    asides: tuple[str, ...]
    """What makes a caption long without saying what it shows."""
    hand_share: float
    """How many captions name a hand. Those that do not teach a denoiser the mean of all hands."""


TRAINED = Phrasing(
    frames=(
        "{}",
        "{}",
        "{}",
        "a picture of {}",
        "a drawing of {}",
        "an image of {}",
        "an icon of {}",
        "we see {}",
        "here is {}",
        "a little picture of {}",
        "this is {}",
    ),
    hands=(
        "{} in the style of {hand}",
        "{} in {hand} style",
        "{} by {hand}",
        "{} drawn by {hand}",
        "{}, by {hand}",
        "{}, in the style of {hand}",
        "{} from the {hand} set",
    ),
    backgrounds=(
        "{} on a {background} background",
        "{}, {background} background",
        "{} on {background}",
        "on a {background} background, {}",
        "{} in front of plain {background}",
    ),
    pairs=(" and ", " next to ", " to the left of ", " and also "),
    asides=(
        "with clear outlines",
        "seen from nearby",
        "placed somewhere near the middle",
        "with nothing else around",
        "plain and neat",
        "as people send it in their messages",
        "drawn with much care",
        "only a few pixels wide",
        "in the way one knows it",
        "which anybody would recognise",
    ),
    hand_share=0.85,
)

HELD_OUT = Phrasing(
    frames=(
        "an illustration of {}",
        "this picture shows {}",
        "look, {}",
        "a sketch of {}",
        "there is {}",
        "please draw {}",
    ),
    hands=(
        "{} as {hand} draws it",
        "{}, a work of {hand}",
        "{}, {hand} style",
        "{} made by {hand}",
    ),
    backgrounds=(
        "{} against a {background} background",
        "{} with a {background} background",
        "{} before a {background} backdrop",
        "{}, all on {background}",
    ),
    pairs=(" beside ", " together with ", " left of "),
    asides=(
        "easy to tell even when tiny",
        "made for a tiny screen",
        "without any words on it",
        "exactly as you would expect",
    ),
    hand_share=0.6,
)


def article(thing: str) -> str:
    """The thing with "a" or "an", where its name takes one."""
    if thing in BARE:
        return thing
    return ("an " if thing.startswith(VOWELS) else "a ") + thing


def written(
    things: Mapping[str, Sequence[str]], n: int, *, seed: int, phrasing: Phrasing, two: float
) -> list[Caption]:
    """`n` captions of the things of a world.

    Args:
        things: Every thing's name, and the hands that draw it.
        n: How many.
        seed: The same captions for the same seed.
        phrasing: How they are said.
        two: Share of captions with two things.
    """
    rng = random.Random(f"{seed} of {len(phrasing.frames)}")
    names = sorted(things)
    return [_caption(rng, things, names, phrasing, two) for _ in range(n)]


def _caption(
    rng: random.Random,
    things: Mapping[str, Sequence[str]],
    names: Sequence[str],
    phrasing: Phrasing,
    two: float,
) -> Caption:
    shown, hands = _shown(rng, things, names, two)
    hand = rng.choice(hands) if rng.random() < phrasing.hand_share else None
    background = rng.choice(BACKGROUNDS) if rng.random() < BACKGROUND_SHARE else None
    text = _spoken(rng, shown, hand, background, phrasing)
    if rng.random() < LONG_SHARE:
        text = _longer(rng, text, phrasing.asides)
    return Caption(text, shown, hand, background)


def _shown(
    rng: random.Random, things: Mapping[str, Sequence[str]], names: Sequence[str], two: float
) -> tuple[tuple[str, ...], list[str]]:
    """One or two things, and the hands that draw all of them."""
    if rng.random() >= two:
        thing = rng.choice(names)
        return (thing,), sorted(things[thing])
    while True:
        left, right = rng.sample(names, 2)
        both = sorted(set(things[left]) & set(things[right]))
        if both:
            return (left, right), both


def _spoken(
    rng: random.Random,
    shown: tuple[str, ...],
    hand: str | None,
    background: str | None,
    phrasing: Phrasing,
) -> str:
    text = rng.choice(phrasing.pairs).join(article(thing) for thing in shown)
    if len(shown) == 1:
        text = rng.choice((text, text, f"the {shown[0]}", f"one {shown[0]}", shown[0]))
    if hand and len(shown) == 1 and rng.random() < 0.2:
        text = f"{hand} {shown[0]}"
    elif hand:
        text = rng.choice(phrasing.hands).format(text, hand=hand)
    text = rng.choice(phrasing.frames).format(text)
    if background:
        text = rng.choice(phrasing.backgrounds).format(text, background=background)
    return text


def _longer(rng: random.Random, text: str, asides: Sequence[str]) -> str:
    """The text with as many asides as fit, at most three."""
    for aside in rng.sample(asides, 3):
        if len(f"{text}, {aside}".split()) <= MOST_WORDS:
            text = f"{text}, {aside}"
    return text
