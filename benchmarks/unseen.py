"""Which preserve list and options protect phrasings that no list holds: noise predictions, ours against UCE's. Prints a table.

The frames are for choosing defaults by: no template, no training caption and no held-out phrasing. Their words are ones that the
tokenizer knows; frames that it spells letter by letter tell nothing. The mean square is carried by single captions, as the mean
of pictures is by flips, so it takes many.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import provenance
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.baselines import uce
from diffusers_erasepro.erasure.auto_layers import (
    GUIDANCE,
    Look,
    _edited,
    _followed,
    _states,
    guided,
)
from diffusers_erasepro.glyphs.world import FIRST
from diffusers_erasepro.prompts.tokens import token_ids
from first_light import concepts_of

FRAMES = (
    "in the kitchen our friend hangs {}",
    "a single poster for children with {}",
    "please draw me {} today",
    "the museum shop has a stamp, {}, for the summer",
    "my school friend made {} at home",
    "everyone at the market likes {}",
    "on a shirt {} from the festival",
    "{} in the front window of the house",
    "a vector render of {}, minimal and modern",
    "{} put under the book",
    "a sticker on my door: {}",
    "we found {} between some trees in the garden",
    "show us {} on a big screen",
    "winter banner, {}, calm light",
    "a quiet room with {} on the wall",
    "has somebody been drawing {} again",
    "you can print {} on paper",
    "a logo for our gallery, {}, simple",
    "{} seen from above in the morning",
    "the children were happy with {}",
    "tiny digital icon of {} in high detail",
    "they left {} over the street",
    "a classic colorful view of {} and the city",
    "it was quite clearly {}",
)
GROUNDS, SIGNATURES = (
    (" on the {}", " near {}", " and {} around it", ""),
    (" from {}", " like {} does", "", ""),
)


def asked(concept: Concept, n: int, seed: int) -> list[str]:
    """`n` captions in these frames that do not name the concept."""
    rng, found = np.random.default_rng([seed, 5]), []
    shapes, styles = (
        [w for w in words if w not in concept.words] for words in (FIRST.shapes, FIRST.styles)
    )
    for i in range(n):
        one = lambda words: str(rng.choice(list(words)))  # noqa: E731
        noun = f"a {one(FIRST.colors)} {one(shapes)}{one(GROUNDS).format(one(FIRST.backgrounds))}"
        found.append(FRAMES[i % len(FRAMES)].format(noun + one(SIGNATURES).format(one(styles))))
    return found


def mixed(pipe: Any, concept: Concept, captions: tuple[str, ...], seed: int = 0) -> tuple[str, ...]:
    """Captions with half of their words replaced by words of the tokenizer that are no part of the concept."""
    taken, rng = (
        {i for word in concept.words for i in pipe.tokenizer(word)["input_ids"]},
        np.random.default_rng(seed),
    )
    vocabulary = sorted(pipe.tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [
        w[:-4] for w, i in vocabulary if w.endswith("</w>") and w[:-4].isalpha() and i not in taken
    ]
    return tuple(
        " ".join(str(rng.choice(words)) if rng.random() < 0.5 else word for word in text.split())
        for text in captions
    )


@torch.no_grad()
def drifts(pipe: Any, adapter: ErasureAdapter, captions: list[str], seed: int) -> Tensor:
    """`Look.compare`'s d of each caption by itself."""
    keeps, empty = (token_ids(pipe.tokenizer, texts) for texts in (captions, [""]))
    way = _followed(pipe, _states(pipe, keeps), _states(pipe, empty), seed)
    with _edited(pipe, adapter):
        steps = [*guided(pipe, way, _states(pipe, keeps), _states(pipe, empty))]
    moved, said = (
        torch.stack([x.double().flatten(1).square().sum(1) for x in side]).sum(0)
        for side in zip(*steps, strict=True)
    )
    return (moved / said).sqrt() / GUIDANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=720, help="captions per concept")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--concepts", nargs="*", default=[c.target for _, c in concepts_of(FIRST)])
    args = parser.parse_args()
    pipe, listed = erasable(glyphs.load_pipeline()), tuple(glyphs.captions(400, seed=0))
    print(f"{provenance(args.seed)}, {args.n} captions\n")
    print(
        "| erased | choice | mean square of d, against UCE's | median | r | held out |\n|---|---|---|---|---|---|"
    )
    for _, concept in concepts_of(FIRST):
        if concept.target not in args.concepts:
            continue
        captions, plain = (
            asked(concept, args.n, args.seed),
            ErasureSpec((concept,), preserve=listed),
        )
        corpus, some = (
            (*listed, *concept.corpus),
            (*listed, *mixed(pipe, concept, plain.preserve_captions()[::3])),
        )
        choices: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
            "default": (listed, {}),
            "no soft prompts": (listed, {"soft_weight": 0.0}),
            "corpus too": (corpus, {}),
            "mixed captions too": (some, {}),
            "mixed captions too, no soft prompts": (some, {"soft_weight": 0.0}),
            "corpus too, no soft prompts, layers (1, -1)": (
                corpus,
                {"soft_weight": 0.0, "layers": (1, -1)},
            ),
        }
        with torch.no_grad():
            look = Look.at(pipe, plain)
        peer = drifts(pipe, uce(pipe, plain), captions, args.seed)
        for name, (preserve, options) in choices.items():
            adapter = erase(pipe, ErasureSpec((concept,), preserve=preserve), **options)
            d, (r, _) = drifts(pipe, adapter, captions, args.seed), look.compare(adapter)
            square, median = (
                float(d.square().mean() / peer.square().mean()),
                float(d.median() / peer.median()),
            )
            print(
                f"| {concept.target} | {name} | {square:.2f} | {median:.2f} | {r:.3f} | {adapter.report.held_out_mean:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
