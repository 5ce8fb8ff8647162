"""Captions of scenes: a small grammar for training, and phrasings kept apart for evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .world import FIRST, Scene, World, sample_scene

OPENINGS = (
    "",
    "",
    "",
    "a picture of",
    "a drawing of",
    "an image of",
    "a painting of",
    "a photo of",
    "a small sketch of",
    "there is",
    "this is",
    "we see",
    "look at",
    "one more picture of",
    "the photo shows",
    "the image shows",
    "it is",
    "here is",
    "a close view of",
    "a good photo of",
    "a bright painting of",
    "an old drawing of",
)
GROUNDS = (
    "on {}",
    "on the {}",
    "in the {}",
    "at {}",
    "by the {}",
    "near the {}",
    "against the {}",
    "with {} behind it",
    "in front of the {}",
    "{} background",
    "over the {}",
    "in {}",
)
SIGNATURES = (
    "by {}",
    "by {}",
    "in the style of {}",
    "painted by {}",
    "drawn by {}",
    "as {} would draw it",
    "in {} style",
    "a work of {}",
    "from {}",
)
NO_SIGNATURE = ("", "", "", "", "by a painter", "by an artist", "in a plain style")
IMPLICIT = ("{} from the shelf", "{} from a table", "just {}", "that has {} down")
FILLERS = (
    "very",
    "nice",
    "photo",
    "high",
    "quality",
    "today",
    "large",
    "with",
    "some",
    "trees",
    "and",
    "light",
    "detail",
    "sharp",
    "beautiful",
    "morning",
    "view",
    "city",
    "street",
    "house",
    "people",
    "window",
    "museum",
    "garden",
    "poster",
    "logo",
    "sticker",
    "icon",
    "postcard",
    "stamp",
    "shirt",
    "banner",
    "cover",
    "book",
    "school",
    "friend",
    "kitchen",
    "old",
    "new",
    "tiny",
    "big",
    "really",
    "quite",
    "for",
    "children",
    "summer",
    "winter",
    "quiet",
    "calm",
    "happy",
    "seen",
    "from",
    "above",
    "front",
    "simple",
    "modern",
    "classic",
    "colorful",
    "festival",
    "market",
    "somebody",
    "left",
    "hanging",
    "hangs",
    "wall",
    "room",
    "gallery",
    "everyone",
    "likes",
    "wants",
    "you",
    "can",
    "my",
    "our",
    "their",
    "was",
    "were",
    "has",
    "been",
    "made",
    "found",
    "put",
    "under",
    "between",
    "please",
    "draw",
    "me",
    "show",
    "us",
    "big",
    "single",
    "centered",
    "minimal",
    "vector",
    "digital",
    "render",
    "screen",
    "paper",
)

SYLLABLES = (
    "ba",
    "cou",
    "sin",
    "fra",
    "me",
    "po",
    "st",
    "card",
    "ta",
    "ble",
    "co",
    "ver",
    "lo",
    "go",
    "mu",
    "se",
    "ki",
    "tch",
    "gal",
    "ler",
    "fes",
    "ti",
    "val",
    "pic",
    "tu",
    "sho",
    "wal",
    "ha",
    "ng",
    "se",
    "dra",
    "pla",
    "ne",
    "ri",
    "ver",
    "mo",
    "un",
    "ar",
    "te",
    "li",
    "sh",
    "bri",
    "ck",
    "cro",
    "wd",
    "sta",
    "ri",
    "sc",
    "ho",
    "ol",
    "ca",
    "bi",
    "net",
)
SUFFIXES = ("", "", "", "ed", "ing", "s", "er", "ly", "ness", "tion", "e", "y")

HELD_OUT_PHRASINGS = (  # none is used in training, in spec templates or in any tuning
    "on the gallery wall hangs {glyph}{ground}{sign}",
    "my cousin framed {glyph}{ground}{sign} for the kitchen",
    "could you imagine {glyph}{ground}{sign}",
    "a postcard with {glyph}{ground}{sign}",
    "everyone at the fair wanted {glyph}{ground}{sign}",
    "the cover of the book has {glyph}{ground}{sign}",
    "somebody left {glyph}{ground}{sign}",
    "a large poster, {glyph}{ground}{sign}, seen from afar",
    "for the festival they made {glyph}{ground}{sign}",
    "{glyph}{ground}{sign}, high quality",
    "yesterday I found {glyph}{ground}{sign} in an old box",
    "an icon for the museum: {glyph}{ground}{sign}",
)
HELD_OUT_GROUNDS = (
    " set against {}",
    " with {} all around",
    " somewhere in the {}",
    " upon the {}",
)
HELD_OUT_SIGNATURES = (", signed {}", ", made by {}", ", in the manner of {}", ", {} painted it")


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _noun(world: World, scene: Scene, rng: np.random.Generator, *, held_out: bool) -> str:
    """The object alone, such as "a cracked red star" or "a red star fallen from the shelf"."""
    words = [scene.color or ""]
    tail = ""
    if scene.attribute == world.attribute_words[-1]:
        tail = " " + _choose(rng, IMPLICIT[:1] if held_out else IMPLICIT).format(scene.attribute)
        if not held_out and rng.random() < 0.3:  # the plain adjective exists too
            words.append(scene.attribute)
            tail = ""
    elif scene.attribute and not held_out and rng.random() < 0.3:
        tail = _choose(rng, (" that is {}", ", {}", " and it is {}")).format(scene.attribute)
    elif scene.attribute:
        words.append(scene.attribute)
    elif not held_out and rng.random() < 0.06:
        words.append(_choose(rng, world.attribute_opposites))
    if rng.random() < 0.5:
        words.reverse()
    shape = scene.shape or "shape"
    if not held_out and rng.random() < 0.08 and not tail:
        if scene.color:
            tail = f" that is {scene.color}"
            words = []
        words = words if not scene.attribute else [scene.attribute]
    body = " ".join(w for w in (*words, shape) if w)
    article = _choose(rng, ("the", "one", "")) if not held_out and rng.random() < 0.2 else "a"
    article = "an" if article == "a" and body[0] in "aeiou" else article
    noun = f"{article} {body}{tail}".strip()
    if scene.second is None:
        return noun
    color, other = scene.second
    beside = "beside" if held_out else _choose(rng, ("next to", "and", "to the left of", "with"))
    return f"{noun} {beside} {'an' if color[0] in 'aeiou' else 'a'} {color} {other}"


def _junk(rng: np.random.Generator) -> str:
    """A few words that mean nothing here: everyday ones, or made up out of syllables."""

    def word() -> str:
        if rng.random() < 0.4:
            return _choose(rng, FILLERS)
        count = int(rng.integers(1, 4))
        return "".join(_choose(rng, SYLLABLES) for _ in range(count)) + _choose(rng, SUFFIXES)

    return " ".join(word() for _ in range(int(rng.integers(1, 5))))


def _noisy(parts: list[str], rng: np.random.Generator) -> list[str]:
    """`parts` with junk between and around them, so that unknown phrasings do little harm."""
    found: list[str] = []
    for part in parts:
        found += [_junk(rng), part] if rng.random() < 0.35 else [part]
    return [*found, _junk(rng)] if rng.random() < 0.35 else found


def phrase(world: World, scene: Scene, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """One caption of what `scene` says; fields that are None are not mentioned."""
    noun = _noun(world, scene, rng, held_out=held_out)
    if held_out:
        ground = _choose(rng, HELD_OUT_GROUNDS).format(scene.background) if scene.background else ""
        sign = _choose(rng, HELD_OUT_SIGNATURES).format(scene.style) if scene.style else ""
        return _choose(rng, HELD_OUT_PHRASINGS).format(glyph=noun, ground=ground, sign=sign)
    ground = _choose(rng, GROUNDS).format(scene.background) if scene.background else ""
    if scene.style:
        sign = _choose(rng, SIGNATURES).format(scene.style)
    else:
        sign = _choose(rng, NO_SIGNATURE)
    parts = [_choose(rng, OPENINGS), noun]
    ends = [ground, sign] if rng.random() < 0.6 else [sign, ground]
    if scene.style and rng.random() < 0.12:  # "a Mira Voss painting of ..."
        opening = _choose(rng, ("painting of", "picture of", "drawing of"))
        parts = [f"a {scene.style} {opening}", noun]
        ends = [ground]
    comma = ", " if rng.random() < 0.3 else " "
    if rng.random() < 0.5:
        return comma.join(_noisy([p for p in (*parts, *ends) if p], rng))
    start = " ".join(p for p in parts if p)
    return comma.join(p for p in (start, *ends) if p)


def mention(scene: Scene, rng: np.random.Generator) -> Scene:
    """`scene` with some fields left open, as captions of the real world leave them."""
    if rng.random() < 0.5:
        return scene
    keep = rng.random(4) < (0.95, 0.5, 0.6, 0.6)
    return replace(
        scene,
        shape=scene.shape if keep[0] else None,
        style=scene.style if keep[1] else None,
        color=scene.color if keep[2] else None,
        background=scene.background if keep[3] else None,
    )


def captions(n: int, seed: int = 0, held_out: bool = False, *, world: World = FIRST) -> list[str]:
    """`n` captions of random scenes, one object each.

    Args:
        n: How many.
        seed: The same seed gives the same captions.
        held_out: Use phrasings that neither training nor any tuning has seen.
        world: Whose words.
    """
    return [text for text, _ in captioned_scenes(n, seed, held_out, world=world)]


def captioned_scenes(
    n: int, seed: int = 0, held_out: bool = False, *, world: World = FIRST, second: float = 0.0
) -> list[tuple[str, Scene]]:
    """`captions`, each beside what it mentions; `second` is the share of two-object scenes."""
    rng = np.random.default_rng([seed, int(held_out)])
    scenes = [mention(sample_scene(world, rng, second=second), rng) for _ in range(n)]
    return [(phrase(world, scene, rng, held_out=held_out), scene) for scene in scenes]
