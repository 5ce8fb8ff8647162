"""Which tokens of each name are its own: `python benchmarks/own_tokens.py` makes the page.

Writes results/own-tokens.md: every word of every spec in adapters/specs, and 95 names, on the
vocabularies of CLIP, T5, Qwen3 and BERT (`python tools/vocabularies.py` fetches them), and
whether captions of COCO have their tokens under another meaning. No model runs; two minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import ROOT, commit

sys.path.insert(0, str(ROOT / "tools"))
from vocabularies import TOKENIZERS, load_tokenizer

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.config.everyday import everyday_captions
from diffusers_erasepro.config.mentions import Mentions
from diffusers_erasepro.config.words import other_number
from diffusers_erasepro.prompts.own_tokens import (
    OwnTokens,
    own_tokens,
    own_tokens_of,
)
from diffusers_erasepro.prompts.scripts import knows_script

SPECS = ROOT / "adapters/specs"
COCO = Path("/work/shared/data/coco-captions.txt")
BATCH = 2000
SHOWN = 6
"""Captions that are named of those that have an own token under another meaning."""
PAGE = ROOT / "benchmarks/results/own-tokens.md"
KNOWN_NAMES = {
    "characters": """Pikachu, Mickey Mouse, Donald Duck, Snoopy, Batman, Superman, Spider-Man,
        Iron Man, Darth Vader, Yoda, R2-D2, Chewbacca, Harry Potter, Gandalf, Shrek, Hello Kitty,
        Super Mario, Sonic, SpongeBob, Garfield, Homer Simpson, Elsa, Godzilla, Totoro,
        Hatsune Miku""",
    "artists": """Van Gogh, Rembrandt, Monet, Picasso, Caravaggio, Warhol, Vermeer, Klimt, Matisse,
        Dali, Hokusai, Banksy, Frida Kahlo, Cezanne, Gauguin, Edvard Munch, Greg Rutkowski,
        Thomas Kinkade, Leonardo da Vinci, Michelangelo""",
    "persons": """Taylor Swift, Barack Obama, Donald Trump, Angela Merkel, Tom Cruise, Emma Watson,
        Brad Pitt, Elon Musk, Beyoncé, Rihanna, Cristiano Ronaldo, Lionel Messi, Michael Jackson,
        Madonna, Prince, Marilyn Monroe, Albert Einstein, Vladimir Putin, Kim Kardashian,
        Oprah Winfrey""",
    "unsafe words": """nude, naked, topless, nudity, erotic, porn, sexy, lingerie, breasts,
        genitals, gun, knife, blood, gore, corpse, suicide, torture, swastika, cocaine, rifle""",
    "brands": """Nike, Adidas, Starbucks, Coca-Cola, McDonald's, Apple, Google, Ferrari, Lego,
        Disney""",
}
SIGNS = {
    "word": "w",
    "common word": "w",
    "name": "n",
    "first of several words": "f",
    "behind a preposition": "f",
    "kept": "k",
    "near": "k",
    "erased too": "e",
    "part of a word": "p",
    "part of a letter": "p",
    "not known to the tokenizer": "?",
    "no list of words in its script": "s",
    "joined with what stands around the name": "p",
}
"""What speaks against a token, up to the colon -> its sign on the page."""
SHORT = "2"
HEAD = """# Which tokens of a name are its own

How exactly a name can be erased is decided by the vocabulary. Where a token is used by this name
alone, its row of the token embedding becomes the anchor's, and no other prompt moves. Where it is
shared ("golf", "swift", "van"), the row is others' too, and the edit has to tell the name by its
context.

`python benchmarks/own_tokens.py` wrote this page at {commit}, with the vocabularies that
`python tools/vocabularies.py` fetches; no model runs. The rule is in
`prompts/own_tokens.py`. It asks texts to keep
(the spec's captions, anchors, templates, near phrases), {words} English words, {names} names that
many people bear.

**Bold** tokens are the name's own. Behind a shared one stands why: w it is a word that means other
things too; n a name that many bear; f the first of several words, or behind a preposition; k a text
to keep uses it; e another concept of the spec does; p it is a part of a word or of a letter; 2 it
has fewer than three letters; s there is no list of words in its script; ? the tokenizer does not
know it. A name is erased exactly, by rows alone, where all its tokens are bold and the anchor has
as many.

Lists have limits: they are English, and the names those of one country. A word of another language
("rio") or a name that few bear is not seen. A spec of your own adds what you care about as `near`
or `preserve`, and its tokens are then shared.
"""


def reason_sign(why: str) -> str:
    return SIGNS.get(why.split(":")[0], SHORT)


def show_tokens(found: OwnTokens) -> str:
    """A cell of the table."""
    shown = []
    for token in found.plain:
        text = token.text.replace("|", "\\|")
        shown.append(f"**{text}**" if token.own else f"{text}<sup>{reason_sign(token.why)}</sup>")
    return " ".join(shown)


def count_own(names: Iterable[OwnTokens]) -> str:
    """How many names are their own wholly, in part, not at all."""
    counts = Counter(
        "all" if name.complete else "some" if any(t.own for t in name.plain) else "none"
        for name in names
    )
    return " / ".join(str(counts[key]) for key in ("all", "some", "none"))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


Judged = dict[str, list[tuple[Mentions, OwnTokens]]]
"""Vocabulary -> per name, what mentions its concept, and its tokens."""


def known_names(tokenizers: dict[str, Any], judged: Judged) -> list[str]:
    """The well-known names, against the everyday captions alone; all of it goes to `judged` too."""
    captions = everyday_captions()
    rows = []
    summary = []
    for group, text in KNOWN_NAMES.items():
        names = [" ".join(name.split()) for name in text.split(",")]
        found = {
            vocabulary: [own_tokens(tokenizer, name, captions) for name in names]
            for vocabulary, tokenizer in tokenizers.items()
        }
        summary.append([f"{group} ({len(names)})", *map(count_own, found.values())])
        for vocabulary, tokens in found.items():
            for name, own in zip(names, tokens, strict=True):
                judged[vocabulary].append((Mentions(in_both_numbers([name])), own))
        for i, name in enumerate(names):
            rows.append([name, *(show_tokens(column[i]) for column in found.values())])
    lines = ["## Well-known names", "", "Names whose tokens are all own / some / none:", ""]
    lines += table(["", *tokenizers], summary)
    return [*lines, "", *table(["name", *tokenizers], sorted(rows, key=lambda r: r[0].lower()))]


def in_both_numbers(words: Iterable[str]) -> list[str]:
    """Words, and their plurals or singulars."""
    found = []
    for word in words:
        number = other_number(word)
        found += [word, number.text] if number else [word]
    return found


def concept_of(spec: ErasureSpec, word: str) -> Concept:
    """The concept that a word, or its plural, belongs to."""
    return next(c for c in spec.concepts if word in in_both_numbers(c.words))


def words_of_specs(folder: Path, tokenizers: dict[str, Any], judged: Judged) -> list[str]:
    """Every word of every spec, in `judged` too; its plural is in the counts alone."""
    rows = []
    counted: dict[str, list[OwnTokens]] = {vocabulary: [] for vocabulary in tokenizers}
    for file in sorted(folder.glob("*/spec.toml")):
        spec = ErasureSpec.from_toml(file.read_text(encoding="utf-8"))
        found = {key: own_tokens_of(spec, tokenizer) for key, tokenizer in tokenizers.items()}
        label = file.parent.name
        for concept in spec.concepts:
            for word in concept.words:
                rows.append([label, word, *(show_tokens(of[word]) for of in found.values())])
                label = ""
        for vocabulary, of in found.items():
            counted[vocabulary] += of.values()
            for word, own in of.items():
                mentioned = Mentions(in_both_numbers(concept_of(spec, word).words))
                judged[vocabulary].append((mentioned, own))
    lines = ["## Every word of every spec", "", "Words and plurals, all own / some / none:", ""]
    lines += table(["", *tokenizers], [["words", *map(count_own, counted.values())]])
    return [*lines, "", *table(["spec", "word", *tokenizers], rows)]


def met_in_captions(captions: list[str], tokenizers: dict[str, Any], judged: Judged) -> list[str]:
    """Own tokens that captions have which do not name the concept."""
    rows = []
    examples = []
    for vocabulary, tokenizer in tokenizers.items():
        holders: dict[int, list[str]] = {}
        for first in range(0, len(captions), BATCH):
            batch = captions[first : first + BATCH]
            encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
            for caption, ids in zip(batch, encoded, strict=True):
                for token_id in {*ids}:
                    holders.setdefault(token_id, []).append(caption)
        total = 0
        met = 0
        for mentioned, own in judged[vocabulary]:
            for token_id, token in own.rows.items():
                others = [text for text in holders.get(token_id, ()) if text not in mentioned]
                total += 1
                met += bool(others)
                if others:
                    examples.append(f"- {vocabulary}, {token.text!r} of {own.name!r}: {others[0]}")
        rows.append([vocabulary, str(total), str(met)])
    lines = ["## Met elsewhere", ""]
    lines += [
        f"Of the own tokens, in every spelling, those that one of {len(captions)} captions of COCO",
        "has without naming the concept, in the singular or plural. The rule saw none of them.",
        "",
    ]
    lines += table(["vocabulary", "own tokens", "met under another meaning"], rows)
    return [*lines, "", *examples[:SHOWN]] if examples else lines


def foreign_names(folder: Path, tokenizers: dict[str, Any]) -> list[str]:
    """Of the names in other languages, how many are in a script that the tokenizer has learned."""
    names: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*/spec.toml")):
        for concept in ErasureSpec.from_toml(file.read_text(encoding="utf-8")).concepts:
            for language, found in concept.names:
                names.setdefault(language, []).extend(found)
    rows = []
    for language, found in sorted(names.items()):
        known = [sum(knows_script(t, name) for name in found) for t in tokenizers.values()]
        rows.append([language, str(len(found)), *map(str, known)])
    lines = ["## Names in other languages", ""]
    lines += ["How many are in a script that the tokenizer has learned (`prompts/scripts.py`).", ""]
    return [*lines, *table(["language", "names", *tokenizers], rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--specs", type=Path, default=SPECS)
    parser.add_argument("--coco", type=Path, default=COCO)
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    tokenizers = {name: load_tokenizer(name) for name in TOKENIZERS}
    lists = ROOT / "src/diffusers_erasepro/prompts"
    sizes = {}
    for key in ("words", "names"):
        lines = (lists / f"{key}.txt").read_text(encoding="utf-8").splitlines()
        sizes[key] = sum(len(line.split()) for line in lines if line[0] not in "#[")
    parts = [HEAD.format(commit=commit(), **sizes)]
    judged: Judged = {name: [] for name in tokenizers}
    sections = [known_names(tokenizers, judged), words_of_specs(args.specs, tokenizers, judged)]
    captions = args.coco.read_text(encoding="utf-8").splitlines()
    sections.insert(0, met_in_captions(captions, tokenizers, judged))
    sections.append(foreign_names(args.specs, tokenizers))
    for section in sections:
        parts.append("\n".join(section) + "\n")
    args.out.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
