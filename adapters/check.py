"""Check every spec against a CLIP tokenizer: `python adapters/check.py --tokenizer FOLDER`.

The folder holds `vocab.json` and `merges.txt`. A spec passes if each listed prompt fits the text
encoder's window, and the tokens of concept and anchor can be aligned: all of `erase` that depends
on the words.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from diffusers_erasepro import ErasureSpec
from diffusers_erasepro.config.plan import ALIGNMENTS, BLOCKS
from diffusers_erasepro.config.text_files import read_text_file
from diffusers_erasepro.errors import ErasureError
from diffusers_erasepro.prompts.alignment import rows_of
from diffusers_erasepro.prompts.pairs import pairs_of

SPECS = Path(__file__).parent / "specs"


def check(spec: ErasureSpec, tokenizer: Any) -> str:
    """One line of counts.

    Raises:
        ErasureError: What `erase` would raise.
    """
    alignment = ALIGNMENTS[BLOCKS.alignment]
    counts = []
    for kind in ("exact", "soft", "held_out"):
        rows = rows_of(pairs_of(spec.concepts, kind), tokenizer, alignment)
        counts.append(f"{len(rows.row)} {kind} positions")
    tokens = 0
    for concept in spec.concepts:
        for word in concept.words:
            ids = tokenizer(word, add_special_tokens=False).input_ids
            tokens = max(tokens, len(ids))
    captions = len(spec.preserve_captions())
    return f"{', '.join(counts)}; at most {tokens} tokens a word; {captions} captions preserved"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True)
    tokenizer = CLIPTokenizer.from_pretrained(parser.parse_args().tokenizer)
    failed = 0
    for path in sorted(SPECS.glob("*/spec.toml")):
        name = path.parent.name
        try:
            spec = ErasureSpec.from_toml(read_text_file(path))
            print(f"{name}: {check(spec, tokenizer)}")
        except ErasureError as error:
            failed += 1
            print(f"{name}: FAILS: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
