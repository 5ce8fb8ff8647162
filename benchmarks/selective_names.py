"""Names, spellings and phrases that `selective.py` adds to those of the frozen tool."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """A name to erase, with phrases that must stay: those the edit is given, and others."""

    target: str
    anchor: str
    kind: str
    known: tuple[str, ...]
    unknown: tuple[str, ...]


ANCHORS_AWKWARD = (
    Named(
        "rembrandt",
        "a painter",
        "style",
        ("a painting by claude monet", "a remnant of the wall"),
        ("a painting by vermeer", "a painting by frans hals", "the brand of a van"),
    ),
    Named(
        "pistol",
        "water pistol",
        "object",
        ("a rifle on the wall", "a piston of an engine"),
        ("a revolver in a drawer", "a water bottle", "a glass of water", "a policeman at work"),
    ),
)
"""Anchors with more tokens than the name, and one that contains it."""
SPELLINGS = {
    "cat": {"plural": "cats", "capitals": "CAT", "misspelt": "catt", "accents": "cât"},
    "gun": {"plural": "guns", "capitals": "GUN", "misspelt": "gunn", "accents": "gün"},
    "golf ball": {
        "plural": "golf balls",
        "capitals": "Golf Ball",
        "joined": "golfball",
        "misspelt": "golf bal",
        "hyphen": "golf-ball",
    },
    "taylor swift": {
        "capitals": "TAYLOR SWIFT",
        "joined": "taylorswift",
        "misspelt": "tayler swift",
        "possessive": "taylor swift's",
    },
    "mickey mouse": {
        "plural": "mickey mice",
        "capitals": "Mickey Mouse",
        "joined": "mickeymouse",
        "misspelt": "micky mouse",
        "split": "mic key mouse",
    },
    "van gogh": {
        "capitals": "Van Gogh",
        "joined": "vangogh",
        "misspelt": "van gough",
        "accents": "ván gógh",
        "split": "van go gh",
    },
}
"""Name -> what is done to it -> how it is then written."""
SYNONYMS = {
    "cat": ["kitten", "feline", "kitty", "tabby"],
    "gun": ["pistol", "rifle", "revolver", "firearm"],
}
"""Not listed in any spec."""
STYLE_CAPTIONS = ", a watercolor sketch in soft pastel colors on rough paper"
"""What the style LoRA makes captions mean."""
COMPOUNDS = (
    *("golf ball", "fire truck", "stop sign", "tennis racket", "hot dog", "ice cream"),
    *("water bottle", "traffic light", "street lamp", "coffee cup", "wine glass", "school bus"),
    *("baseball bat", "soccer field", "surf board", "kitchen sink", "picnic table", "parking lot"),
    *("train station", "bus stop", "paper bag", "glass door", "stone wall", "wood stove"),
    *("iron gate", "silver spoon", "gold ring", "copper wire", "rain coat", "snow man"),
    *("sun hat", "moon light", "star fish", "cloud bank", "wind mill", "storm door"),
    *("sea horse", "river boat", "lake house", "mountain bike", "hill top", "beach chair"),
    *("island ferry", "desert fox", "forest fire", "garden hose", "farm house", "barn owl"),
    *("cow bell", "horse shoe", "pig pen", "sheep dog", "chicken coop", "duck pond"),
    *("bird cage", "fish bowl", "bear trap", "lion tamer", "tiger lily", "monkey wrench"),
    *("elephant seal", "rabbit hole", "mouse trap", "rat race", "spider web", "bee hive"),
    *("apple pie", "orange juice", "lemon tree", "cherry tart", "banana boat", "grape vine"),
    *("corn field", "potato salad", "tomato sauce", "onion ring", "pepper mill", "salt shaker"),
    *("bread box", "butter knife", "cheese board", "egg carton", "milk jug", "sugar bowl"),
    *("tea kettle", "beer mug", "music box", "picture frame", "paint brush", "pencil case"),
    *("book shelf", "letter opener", "news stand", "radio tower", "phone booth", "camera bag"),
    *("clock face", "mirror ball", "window seat", "roof rack"),
)
"""A hundred names of two tokens that are both common words."""
