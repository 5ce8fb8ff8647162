"""Prompts that no list holds and no page judges: no template, training or held-out phrasing."""

import numpy as np

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.evaluation.suites import Case, Cases
from diffusers_erasepro.glyphs.concept_prompts import kind_of, prompts_with
from diffusers_erasepro.glyphs.world import FIRST
from worlds import as_cases

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
"""Of words that the tokenizer knows: frames that it spells letter by letter say nothing."""
GROUNDS = (" on the {}", " near {}", " and {} around it", "")
SIGNATURES = (" from {}", " like {} does", "", "")


def framed_cases(spec: ErasureSpec, n: int, seed: int) -> Cases:
    """Targets in training phrasings, which these choices may see; others in `FRAMES`."""
    (concept,) = spec.concepts
    count = max(1, n // 15)
    pairs = prompts_with(concept, count, seed=seed, held_out=False)
    target = as_cases(pairs, concept, kind_of(FIRST, concept))
    return {"target": target, "other": framed_others(concept, n, seed)}


def framed_others(concept: Concept, n: int, seed: int) -> list[Case]:
    """`n` captions in these frames that do not name the concept."""
    rng = np.random.default_rng([seed, 5])
    shapes = [word for word in FIRST.shapes if word not in concept.words]
    styles = [word for word in FIRST.styles if word not in concept.words]
    cases = []
    for i in range(n):
        color = str(rng.choice([*FIRST.colors]))
        shape = str(rng.choice(shapes))
        ground = str(rng.choice(GROUNDS)).format(rng.choice([*FIRST.backgrounds]))
        signature = str(rng.choice(SIGNATURES)).format(rng.choice(styles))
        text = FRAMES[i % len(FRAMES)].format(f"a {color} {shape}{ground}{signature}")
        cases.append(Case(text, {"shape": shape, "color": color}))
    return cases
