"""Make the lists of words and names: `python tools/word_lists.py SCOWL NAMES`.

SCOWL: the folder of Debian's package `scowl` (2020.12.07) that holds `english-words.10`.
NAMES: the folder of PyPI's package `names` (0.3.0) that holds `dist.all.last`.

Writes `words.txt` and `names.txt` beside `prompts/own_tokens.py`. SCOWL's notices, which must go
with every copy, are `words.licence.txt`, the package's `copyright` file. The names are those of
the United States census of 1990, in the public domain.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

TO = Path(__file__).parent.parent / "src/diffusers_erasepro/prompts"
SIZES = (10, 20, 35, 40)
"""SCOWL's: the lower, the better a word is known. "batman", an officer's servant, is at 55."""
SURNAMES = 5000
"""The most frequent ones; of 50,000 people one at least bears each."""
GIVEN = 0.004
"""Per cent of men or of women that bear a given name, at least."""
NOTICE = """\
English words of SCOWL 2020.12.07 up to size 40, made by tools/word_lists.py. Copyright 2000-2018 by
Kevin Atkinson and others; words.licence.txt, the package's own file, lists them and their terms.
"""
CENSUS = """\
Names that many people bear: given names and the 5000 most frequent surnames of the United States
census of 1990 (public domain), made by tools/word_lists.py.
"""


def read_words(folder: Path, size: int) -> set[str]:
    """The lower-case words of a size, without possessives."""
    found: set[str] = set()
    for region in ("english", "american", "british"):
        text = (folder / f"{region}-words.{size}").read_text(encoding="iso-8859-1")
        found |= {word for word in text.split() if len(word) > 1 and "'" not in word}
    return found


def read_names(folder: Path) -> set[str]:
    """The frequent names, in lower case."""
    lines = (folder / "dist.all.last").read_text(encoding="utf-8").splitlines()[:SURNAMES]
    found = {line.split()[0].lower() for line in lines}
    for file in ("dist.male.first", "dist.female.first"):
        for line in (folder / file).read_text(encoding="utf-8").splitlines():
            name, share, *_ = line.split()
            if float(share) >= GIVEN:
                found.add(name.lower())
    return found


def write(file: Path, notice: str, sections: dict[str, set[str]]) -> None:
    """Comment lines with the notice, then one heading and its sorted words after the other."""
    lines = [f"# {line}" for line in notice.splitlines()]
    for heading, words in sections.items():
        lines += [f"[{heading}]", *textwrap.wrap(" ".join(sorted(words)), 100)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scowl", type=Path)
    parser.add_argument("names", type=Path)
    args = parser.parse_args()
    words: dict[str, set[str]] = {}
    for size in SIZES:
        smaller = set().union(*words.values())
        words[str(size)] = read_words(args.scowl, size) - smaller
    write(TO / "words.txt", NOTICE, words)
    write(TO / "names.txt", CENSUS, {"names": read_names(args.names)})


if __name__ == "__main__":
    main()
