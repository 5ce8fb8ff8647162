"""Check every spec against a CLIP tokenizer: `python adapters/check.py --tokenizer FOLDER`.

The folder holds `vocab.json` and `merges.txt`. A spec passes if each listed prompt fits the text encoder's window and the
concept's and the anchor's tokens can be aligned, which is all of `erase` that depends on the words.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from diffusers_erasepro import ErasureSpec
from diffusers_erasepro.config.template_set import BLOCKS
from diffusers_erasepro.errors import ErasureError
from diffusers_erasepro.prompts.pairs import ALIGNMENTS, pairs_of, rows_of

SPECS = Path(__file__).parent / "specs"


def check(spec: ErasureSpec, tokenizer: Any) -> str:
    """One line of counts; raises what `erase` would raise."""
    align = ALIGNMENTS[BLOCKS.alignment]
    rows = {
        kind: rows_of(pairs_of(spec.concepts, kind), tokenizer, align)
        for kind in ("exact", "soft", "held_out")
    }
    words = [w for c in spec.concepts for w in c.words]
    tokens = max(len(tokenizer(w, add_special_tokens=False).input_ids) for w in words)
    counts = ", ".join(f"{len(r.row)} {kind} positions" for kind, r in rows.items())
    return f"{counts}; at most {tokens} tokens a word; {len(spec.preserve_captions())} captions preserved"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True)
    tokenizer = CLIPTokenizer.from_pretrained(parser.parse_args().tokenizer)
    failed = 0
    for path in sorted(SPECS.glob("*/spec.toml")):
        try:
            print(
                f"{path.parent.name}: {check(ErasureSpec.from_toml(path.read_text()), tokenizer)}"
            )
        except ErasureError as error:
            failed += 1
            print(f"{path.parent.name}: FAILS: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
