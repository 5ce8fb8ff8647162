"""Erase cats and bombs from the pictures world; save, load, switch, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from tqdm.auto import tqdm

from .. import pictures
from ..config.mentions import Mentions
from ..config.spec import Concept, ErasureSpec
from ..erasure.erase import erase
from ..evaluation.plots import save_before_after
from ..loaders.mixin import erasable
from .demo import name_next_command

PICTURES_CONCEPTS = {
    "no-cat": Concept("cat", "dog", synonyms=("kitten", "kitty")),
    "no-bomb": Concept("bomb", "balloon"),
}
"""Each of these names is one token that nothing else uses, so that its row in the table is enough,
and prompts without it are read as before, to the bit; docs/concepts/gates.md says more."""
PROMPTS_ERASED = {
    "a cat face on a blue background": "cat face",
    "a drawing of a kitten": "cat face",
    "a bomb on a yellow background": "bomb",
}
"""Prompt -> the thing that a picture of it shows before."""
PROMPTS_KEPT = {
    "a tiger face on a blue background": "tiger face",
    "a dog face, pink background": "dog face",
    "a hammer on a yellow background": "hammer",
    "a birthday cake on pink": "birthday cake",
    "a strawberry on a white background": "strawberry",
    "here is a rocket on a blue background": "rocket",
}
NOISES_TRIED = 6
"""Of every prompt, the first of so many noises is taken whose picture the judge recognises."""
PICTURES_STEPS = 12
PICTURES_GUIDANCE = 4.0
CAPTIONS_KEPT = 400
"""Captions to keep."""


def run_pictures(out: Path, console: Console) -> dict[str, Any]:
    """What the README's picture shows, in one go; files land in `out`, numbers are returned.

    Raises:
        ErasureError: The distribution of the world is missing; the message says what to install.
    """
    pipe = erasable(pictures.load_pipeline("unet"))
    known = [caption.text for caption in pictures.captions(CAPTIONS_KEPT)]
    for name, concept in tqdm(PICTURES_CONCEPTS.items(), desc="erase", leave=False):
        named = Mentions(concept.words)
        keep = tuple(text for text in known if text not in named)
        spec = ErasureSpec((concept,), preserve=keep)
        erase(pipe, spec).save_pretrained(out / name)

    wanted = PROMPTS_ERASED | PROMPTS_KEPT
    prompts = list(wanted)
    noises = choose_noises(pipe, wanted)
    before = draw_prompts(pipe, prompts, noises)
    for name in PICTURES_CONCEPTS:
        pipe.load_erasure_adapter(out / name, adapter_name=name)
    residual = pipe.verify_erasure(raise_on_fail=True).residual
    after = draw_prompts(pipe, prompts, noises)
    with pipe.erasure_disabled():
        again = draw_prompts(pipe, prompts, noises)
    pairs = zip(again, before, strict=True)
    same = all(now.tobytes() == base.tobytes() for now, base in pairs)

    rows = list(zip(prompts, before, after, strict=True))
    sections = {
        "Erased: a cat becomes a dog, a bomb a balloon": rows[: len(PROMPTS_ERASED)],
        "Everything else stays": rows[len(PROMPTS_ERASED) :],
    }
    picture = save_before_after(out / "before-after.png", sections)
    seen = [count_erased_things(images) for images in (before, after)]
    others = rows[len(PROMPTS_ERASED) :]
    kept = sum(was.tobytes() == now.tobytes() for _, was, now in others)
    console.print(
        f"made: {' and '.join(PICTURES_CONCEPTS)} in {out}, files that load, stack and switch off "
        f"(off is the base to the bit: {same})",
        soft_wrap=True,
    )
    console.print(
        f"did: of {len(PROMPTS_ERASED)} pictures {seen[0]} show what is erased before and "
        f"{seen[1]} after, says the judge; of {len(others)} others {kept} are the same to the bit; "
        f"look at {picture}",
        soft_wrap=True,
    )
    console.print(f"next: {name_next_command()}", soft_wrap=True)
    return {
        "residual": residual,
        "same_bits": same,
        "picture": str(picture),
        "erased_seen": seen,
        "others_same_bits": kept,
    }


def draw_prompts(pipe: Any, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    """One picture per prompt, each from the noise of its seed."""
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(
        list(prompts),
        num_inference_steps=PICTURES_STEPS,
        guidance_scale=PICTURES_GUIDANCE,
        generator=noise,
    ).images


def choose_noises(pipe: Any, wanted: dict[str, str]) -> list[int]:
    """The first seed of each prompt whose picture shows what is wanted; 0 where none does."""
    judge = pictures.load_judge()
    found: dict[str, int] = {}
    for seed in tqdm(range(NOISES_TRIED), desc="draw", leave=False):
        missing = [prompt for prompt in wanted if prompt not in found]
        if not missing:
            break
        images = draw_prompts(pipe, missing, [seed] * len(missing))
        for prompt, thing in zip(missing, judge(images)["thing"], strict=True):
            if thing == wanted[prompt]:
                found[prompt] = seed
    return [found.get(prompt, 0) for prompt in wanted]


def count_erased_things(images: Sequence[Image.Image]) -> int:
    """In how many of the first pictures the judge sees what their prompts name."""
    seen = pictures.load_judge()(images[: len(PROMPTS_ERASED)])["thing"]
    return sum(a == b for a, b in zip(seen, PROMPTS_ERASED.values(), strict=True))
