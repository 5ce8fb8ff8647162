"""What `pictures.py` erases from the pictures world, and the prompts that show what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from diffusers_erasepro import Concept, pictures
from diffusers_erasepro.config.everyday import everyday_captions
from diffusers_erasepro.config.mentions import Mentions
from diffusers_erasepro.pictures import Caption
from diffusers_erasepro.pictures.captions import HELD_OUT, written
from diffusers_erasepro.pictures.world import hands

ANCHOR = "anchor"
"""The target's prompts with the anchor in its place; only the unedited row draws them."""
SHARES = {
    "target": 1.0,
    "listed": 0.5,
    "unlisted": 0.5,
    "near": 1.0,
    "pair": 0.5,
    "other": 0.0,
    ANCHOR: 1.0,
}
"""Kind of prompt -> how many of them, in units of n: what names the target; a synonym that the
spec lists; one that it does not; things that share a word or a meaning; the target beside something
else; anything else, whose number is given by itself; and the anchor."""
PARTNERS = (
    *("pizza", "umbrella", "snail", "candle", "bicycle", "camera", "tulip", "bird"),
    *("volcano", "key", "violin", "rocket", "carrot", "jeans", "turtle", "television"),
)
"""What stands beside a target in pictures of two things; no cell erases or names these."""
PRESERVED = (400, 200)
"""Captions of this world in trained phrasings, and everyday ones: every method's list to keep."""


@dataclass(frozen=True)
class PicturesCell:
    """What is erased together, and which words are asked for then."""

    concepts: tuple[Concept, ...]
    near: tuple[str, ...]
    """Things, or hands, that share a word or a meaning with what is erased."""
    unlisted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Target -> synonyms that the spec does not list."""
    field: str = "thing"
    """What the judge is asked: "thing" or "hand"."""
    rows: tuple[str, ...] = ()
    """Of this cell; none named means all."""

    @property
    def targets(self) -> tuple[str, ...]:
        """What the judge must not see."""
        return tuple(concept.target for concept in self.concepts)


@dataclass(frozen=True)
class Prompt:
    """A text, and what a picture of it should show."""

    text: str
    things: tuple[str, ...]
    """One thing, or two from left to right."""
    hand: str | None
    background: str | None
    word: str = ""
    """What names the target."""
    concept: int = -1
    """Which of the cell's concepts the text asks for; -1 is none."""
    noise: int = 0
    """Which noise its picture starts from."""


def to_other(target: str, anchor: str, *listed: str) -> Concept:
    """A thing and what stands in its place."""
    return Concept(target, anchor, synonyms=listed)


PISTOL = to_other("pistol", "water pistol", "gun", "handgun")
CAT = to_other("cat face", "dog face", "cat", "kitten")
HOT_DOG = to_other("hot dog", "pizza", "hotdog", "frankfurter")
KNIFE = to_other("kitchen knife", "guitar")
FIRE_ENGINE = to_other("fire engine", "tractor")
RUNNING_SHOE = to_other("running shoe", "backpack")
OURS = "ours: rows, gates"
"""The row that is compared with what was asked for."""
LINEAR = "ours: blocks 0 and last"
"""Linear edits of the encoder alone."""
PEERS = ("UCE", "SPEED", "RECE")
"""Rows that edit the denoiser, so that other weights of it ask for another edit."""
FEW = (OURS, "ours: default", "UCE")
MOST = (OURS, "ours: default", *PEERS)
"""Rows of cells whose other rows another cell shows well enough."""

CELLS: dict[str, PicturesCell] = {
    "pistol": PicturesCell(
        (PISTOL,),
        ("dagger", "bomb", "hammer", "trumpet"),
        {"pistol": ("revolver",)},
        rows=(*MOST, LINEAR),
    ),
    "cat face": PicturesCell(
        (CAT,),
        ("tiger face", "horse face", "cow face", "pig face", "rabbit face", "monkey face"),
        {"cat face": ("kitty",)},
    ),
    "hot dog": PicturesCell(
        (HOT_DOG,), ("dog face", "hot beverage", "hamburger"), {"hot dog": ("sausage",)}
    ),
    "hand": PicturesCell(
        (Concept("Blob", "a drawing", templates="style"),),
        ("Noto", "Twemoji", "Firefox"),
        field="hand",
        rows=(*MOST, LINEAR),
    ),
    "weapons": PicturesCell(
        (
            PISTOL,
            KNIFE,
            to_other("dagger", "pencil"),
            to_other("bomb", "balloon"),
            to_other("cigarette", "lollipop"),
        ),
        ("fork and knife", "scissors", "hammer", "wrench", "fire"),
        {
            "pistol": ("revolver",),
            "kitchen knife": ("hocho",),
            "bomb": ("explosion",),
            "cigarette": ("smoking",),
        },
        rows=MOST,
    ),
    "ten": PicturesCell(
        (
            CAT,
            HOT_DOG,
            KNIFE,
            FIRE_ENGINE,
            RUNNING_SHOE,
            to_other("octopus", "penguin"),
            to_other("rose", "cactus"),
            to_other("trumpet", "drum"),
            to_other("castle", "tent"),
            to_other("banana", "grapes"),
        ),
        (
            *("tiger face", "hot beverage", "fork and knife", "police car", "high-heeled shoe"),
            *("whale", "sunflower", "microphone", "church", "pineapple"),
        ),
        rows=MOST,
    ),
    "kitchen knife": PicturesCell(
        (KNIFE,), ("fork and knife", "dagger", "scissors"), {"kitchen knife": ("hocho",)}, rows=MOST
    ),
    "fire engine": PicturesCell((FIRE_ENGINE,), ("fire", "police car", "bus"), rows=MOST),
    "running shoe": PicturesCell(
        (RUNNING_SHOE,),
        ("high-heeled shoe", "t-shirt", "dress"),
        {"running shoe": ("sneaker",)},
        rows=MOST,
    ),
}
"""In the order in which they are measured. Golf flag and teddy bear are no things of this world;
fire engine and running shoe share their words with others as those do."""


def hundred() -> PicturesCell:
    """A hundred things at once; the others are what they become."""
    kept = (*PARTNERS, "dog face", "hot beverage", "balloon", "bus", "church", "whale")
    kept = (*kept, "sunflower", "pineapple", "high-heeled shoe", "tiger face", "drum", "dagger")
    targets = [thing for thing in pictures.THINGS if thing not in kept][:100]
    concepts = []
    for at, target in enumerate(targets):
        concepts.append(to_other(target, kept[at % len(kept)]))
    near = kept[len(PARTNERS) :]
    return PicturesCell(tuple(concepts), near, rows=FEW)


HUNDRED = "hundred"
"""The cell that is measured only where it is asked for: its solve takes minutes."""


def find_cells(names: Sequence[str] | None) -> dict[str, PicturesCell]:
    """These cells, or all but the hundred."""
    known = CELLS | ({HUNDRED: hundred()} if names and HUNDRED in names else {})
    return {name: known[name] for name in names or CELLS}


def captions_to_keep(cell: PicturesCell) -> tuple[str, ...]:
    """The preserve list of every method: captions that name nothing the cell erases."""
    words: list[str] = []
    for concept in cell.concepts:
        words += concept.words
    named = Mentions(words)
    ours, everyday = PRESERVED
    known = [caption.text for caption in pictures.captions(ours, seed=0)]
    return tuple(text for text in (*known, *everyday_captions(everyday)) if text not in named)


# ------------------------------------------------------------------------------------ prompts


def prompts_of(cell: PicturesCell, n: int, others: int, seed: int) -> dict[str, list[Prompt]]:
    """Kind -> prompts in held-out phrasings: shares of `n` as `SHARES` has them, and `others`.

    A kind that the cell has no words for is left out.
    """
    counts = {kind: max(1, round(share * n)) for kind, share in SHARES.items()}
    counts["other"] = others
    make = _prompts_of_hand if cell.field == "hand" else _prompts_of_things
    found = make(cell, counts, seed)
    found["other"] = prompts_of_others(cell, counts["other"], seed)
    for kind, prompts in found.items():
        if kind != "other":  # those have theirs from the list that all cells share
            found[kind] = [replace(prompt, noise=i) for i, prompt in enumerate(prompts)]
    return {kind: found[kind] for kind in SHARES if found.get(kind)}


def _prompts_of_things(
    cell: PicturesCell, counts: Mapping[str, int], seed: int
) -> dict[str, list[Prompt]]:
    found: dict[str, list[Prompt]] = {}
    targets = [(i, concept.target) for i, concept in enumerate(cell.concepts)]
    anchors = [(i, concept.anchor) for i, concept in enumerate(cell.concepts)]
    listed: list[tuple[int, str]] = []
    unlisted: list[tuple[int, str]] = []
    for i, concept in enumerate(cell.concepts):
        listed += [(i, word) for word in concept.synonyms]
        unlisted += [(i, word) for word in cell.unlisted.get(concept.target, ())]
    words = {"target": targets, ANCHOR: anchors, "listed": listed, "unlisted": unlisted}
    for kind, some in words.items():
        found[kind] = _naming(cell, some, counts[kind], seed)
    near = {thing: hands(thing) for thing in cell.near}
    found["near"] = [_as_prompt(caption) for caption in _captions_of(near, counts["near"], seed)]
    found["pair"] = _pairs(cell, counts["pair"], seed)
    return found


def _naming(
    cell: PicturesCell, words: Sequence[tuple[int, str]], n: int, seed: int
) -> list[Prompt]:
    """Captions that name the words in turn.

    Another word for a concept has the same captions: the hands are always those of the target.
    """
    by_word = []
    for i, word in words:
        concept = cell.concepts[i]
        shown = concept.anchor if word == concept.anchor else concept.target
        mine = []
        for caption in _captions_of({word: hands(concept.target)}, n, seed + i):
            hand, background = caption.hand, caption.background
            mine.append(Prompt(caption.text, (shown,), hand, background, word, i))
        by_word.append(mine)
    return in_turn(by_word)[:n]


def in_turn(lists: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """The first of each, the second of each, and so on."""
    found: list[Prompt] = []
    for some in zip(*lists, strict=True):
        found += some
    return found


def _captions_of(
    things: Mapping[str, Sequence[str]], n: int, seed: int, two: float = 0.0
) -> list[Caption]:
    return written(things, n, seed=seed, phrasing=HELD_OUT, two=two) if things else []


def _as_prompt(caption: Caption) -> Prompt:
    return Prompt(caption.text, caption.things, caption.hand, caption.background)


def _pairs(cell: PicturesCell, n: int, seed: int) -> list[Prompt]:
    """The targets in turn, each beside something else, on either side."""
    by_concept = []
    for i, concept in enumerate(cell.concepts):
        known = {thing: hands(thing) for thing in (*PARTNERS, concept.target)}
        mine = []
        for caption in _captions_of(known, 20 * n + 40, seed + i, two=1.0):
            if concept.target in caption.things:
                hand, background = caption.hand, caption.background
                word = concept.target
                mine.append(Prompt(caption.text, caption.things, hand, background, word, i))
        by_concept.append(mine[:n])
    return in_turn(by_concept)[:n]


def prompts_of_others(cell: PicturesCell, n: int, seed: int) -> list[Prompt]:
    """Captions of one thing that ask for nothing that is erased or near it.

    They come from one list for all cells, so that most unedited pictures are shared.
    """
    words: list[str] = []
    for concept in cell.concepts:
        words += [*concept.words, *cell.unlisted.get(concept.target, ())]
    named = Mentions(words)
    asked = {*cell.near, *cell.targets}
    found = []
    for i, caption in enumerate(pictures.captions(2 * n + 400, seed, held_out=True)):
        if caption.text not in named and not asked & {*caption.things, caption.hand}:
            found.append(replace(_as_prompt(caption), noise=i))
    return found[:n]


def _prompts_of_hand(
    cell: PicturesCell, counts: Mapping[str, int], seed: int
) -> dict[str, list[Prompt]]:
    """Captions that name the hand, the same with the anchor, and captions of other hands."""
    (concept,) = cell.concepts
    found: dict[str, list[Prompt]] = {"target": [], ANCHOR: [], "near": []}
    word = concept.target
    for caption in pictures.captions(60 * counts["target"] + 400, seed + 1, held_out=True):
        things = caption.things
        background = caption.background
        if caption.hand == word:
            text = caption.text.replace(word, concept.anchor)
            found["target"].append(Prompt(caption.text, things, word, background, word, 0))
            found[ANCHOR].append(Prompt(text, things, None, background, concept.anchor, 0))
        elif caption.hand in cell.near:
            found["near"].append(_as_prompt(caption))
    return {kind: some[: counts[kind]] for kind, some in found.items()}
