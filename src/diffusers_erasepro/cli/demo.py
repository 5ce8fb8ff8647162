"""Erase a shape, a style and an attribute from the glyph world; save, load, switch, compare."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from tqdm.auto import tqdm

from .. import glyphs
from ..config.spec import Concept, ErasureSpec
from ..erasure.erase import erase
from ..evaluation.plots import save_grid
from ..loaders.mixin import erasable
from .tables import report_table

DEMO_CONCEPTS = {
    "no-star": Concept("star", anchor="circle", templates=glyphs.templates("shape")),
    "no-mira-voss": Concept("Mira Voss", "Una Flatt", templates=glyphs.templates("style")),
    "no-cracked": Concept(
        "cracked",
        anchor="whole",
        templates=glyphs.templates("attribute"),
        synonyms=("broken", "shattered", "fallen"),
    ),
}
DEMO_PROMPTS = (
    "a postcard with a yellow star set against night",
    "somebody left a purple star upon the snow",
    "an icon for the museum: a red heart, signed Mira Voss",
    "a blue square set against sand, made by Mira Voss",
    "everyone wanted a broken green circle upon the meadow",
    "a shattered orange diamond with snow all around",
    "could you imagine a red ring somewhere in the sea",
    "a poster, a green crescent, signed Mara Vance",
    "the cover of the book has a purple arrow upon the sand",
)


NEXT = 'erase MODEL --target "Van Gogh" --anchor "a painter" --templates style --explain'


def name_next_command() -> str:
    """The last line of every demo, as this shell can run it.

    `make demo` installs into an environment that is not on the path.
    """
    program = "erasepro" if shutil.which("erasepro") else shlex.quote(sys.argv[0])
    return f"{program} {NEXT}"


def generate(
    pipe: Any, prompts: tuple[str, ...] = DEMO_PROMPTS, *, seed: int = 0, steps: int = 15
) -> list[Any]:
    """One image per prompt; the same seeds give the same noise."""
    noise = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(
        list(prompts), num_inference_steps=steps, guidance_scale=3.0, generator=noise
    ).images


def count_erased(images: Sequence[Image.Image]) -> int:
    """In how many pictures the judge sees something that the demo erases."""
    targets = {concept.target for concept in DEMO_CONCEPTS.values()}
    seen = glyphs.load_judge()(images)
    every = zip(seen["shape"], seen["style"], seen["attribute"], strict=True)
    return sum(
        bool({shape, style} & targets) or attribute is True for shape, style, attribute in every
    )


def run(out: Path, console: Console) -> dict[str, Any]:
    """Everything the README claims, in one go; files land in `out`, numbers are returned."""
    reports: dict[str, Any] = {}
    pipe = glyphs.load_pipeline()
    preserve = tuple(glyphs.captions(400, seed=0))
    for name, concept in tqdm(DEMO_CONCEPTS.items(), desc="erase", leave=False):
        adapter = erase(pipe, ErasureSpec((concept,), preserve=preserve))
        adapter.save_pretrained(out / name)
        reports[name] = adapter.header()["report"]
        console.print(report_table(name, reports[name]))

    fresh = erasable(glyphs.load_pipeline())
    images = {"base": generate(fresh)}
    for name in tqdm(DEMO_CONCEPTS, desc="load", leave=False):
        fresh.load_erasure_adapter(out / name, adapter_name=name)
    console.print(f"loaded: {fresh.get_erasure_adapters()}")
    residual = fresh.verify_erasure(raise_on_fail=True).residual
    console.print(f"verified on the live modules: {residual:.1e}")
    images["all three\nerased"] = generate(fresh)
    fresh.set_erasure_adapters(["no-star"])
    images["only the star\nerased"] = generate(fresh)
    with fresh.erasure_disabled():
        pairs = zip(generate(fresh), images["base"], strict=True)
        same = all(now.tobytes() == base.tobytes() for now, base in pairs)
    console.print(f"switched off, the pictures are the base's to the bit: {same}")
    picture = save_grid(out / "before-after.png", DEMO_PROMPTS, images)
    before = count_erased(images["base"])
    after = count_erased(images["all three\nerased"])
    console.print(
        f"made: {', '.join(DEMO_CONCEPTS)} in {out}, files that load, stack and switch off",
        soft_wrap=True,
    )
    console.print(
        f"did: the judge sees what is erased in {before} of {len(DEMO_PROMPTS)} pictures before "
        f"and in {after} after; look at {picture}",
        soft_wrap=True,
    )
    console.print(f"next: {name_next_command()}", soft_wrap=True)
    return {"reports": reports, "residual": residual, "same_bits": same, "picture": str(picture)}
