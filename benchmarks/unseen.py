"""Which preserve list and options protect phrasings that no list holds; ours against UCE."""

from functools import partial
from typing import Any

import numpy as np

from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erase
from diffusers_erasepro.baselines import uce
from frames import framed_cases
from harness import Cell, Experiment, main, parse_arguments
from worlds import glyph_world

COLUMNS = ("ACC_e", "mse", "ratio", "median", "flipped", "r", "d")
TEXT = f"{__doc__} The mse ratio is that of the default over the row."


def erase_keeping_more(
    pipe: Any, spec: ErasureSpec, *, more: str, **options: Any
) -> ErasureAdapter:
    """Ours with the concept's "corpus" in the preserve list too, or with "mixed" captions."""
    (concept,) = spec.concepts
    captions = spec.preserve_captions()
    extra = concept.corpus if more == "corpus" else mix_words(pipe, concept, captions[::3])
    return erase(pipe, ErasureSpec((concept,), preserve=(*captions, *extra)), **options)


def mix_words(
    pipe: Any, concept: Concept, captions: tuple[str, ...], seed: int = 0
) -> tuple[str, ...]:
    """Captions with half of their words replaced by words of the tokenizer, none the concept's."""
    rng = np.random.default_rng(seed)
    taken: set[int] = set()
    for word in concept.words:
        taken |= {*pipe.tokenizer(word)["input_ids"]}
    words = []
    for token, number in sorted(pipe.tokenizer.get_vocab().items(), key=lambda item: item[1]):
        word = token.removesuffix("</w>")
        if word != token and word.isalpha() and number not in taken:
            words.append(word)
    mixed = []
    for text in captions:
        kept = [str(rng.choice(words)) if rng.random() < 0.5 else word for word in text.split()]
        mixed.append(" ".join(kept))
    return tuple(mixed)


METHODS = {
    "ours: default": erase,
    "ours: no soft prompts": partial(erase, soft_weight=0.0),
    "ours: corpus too": partial(erase_keeping_more, more="corpus"),
    "ours: mixed captions too": partial(erase_keeping_more, more="mixed"),
    "ours: mixed too, no soft prompts": partial(erase_keeping_more, more="mixed", soft_weight=0.0),
    "ours: corpus too, no soft prompts, layers (1, -1)": partial(
        erase_keeping_more, more="corpus", soft_weight=0.0, layers=(1, -1)
    ),
    "UCE": uce,
}

if __name__ == "__main__":
    args = parse_arguments(720, 8, __doc__)
    world = glyph_world("first")
    suite = world.suite(framed_cases, "frames")
    cells = {target: Cell((concept,), suite) for target, concept in world.concepts.items()}
    unseen = Experiment(
        "unseen", world, cells, METHODS, args.n, args.seed, TEXT, COLUMNS, predictions=True
    )
    main(unseen, args)
