"""Make the ready adapters of the glyph world and the index page: `make adapters`.

Each folder under `glyphs/` gets its spec, weights, card and image. Run twice on one machine it
writes the same bytes; the Makefile keeps torch to one thread, as sums in another order round
differently.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.adapters.header import describe, read_headers
from diffusers_erasepro.cli.demo import generate
from diffusers_erasepro.config.text_files import read_text_file, write_text_file

HERE = Path(__file__).parent
ATTRIBUTE = Concept(
    "cracked",
    anchor="whole",
    templates=glyphs.templates("attribute"),
    synonyms=("broken", "shattered", "fallen"),
)
TILE = 64
RANK = 24
"""Most of each layer, so that the folder stays small.

About a hundredth of the soft part is cut, and the report says so.
"""


def concepts() -> dict[str, Concept]:
    """Folder name -> concept: every shape, every style but the plain one, the attribute."""
    every = []
    for shape in glyphs.SHAPES:
        anchor = "square" if shape == "circle" else "circle"
        every.append(Concept(shape, anchor=anchor, templates=glyphs.templates("shape")))
    for style in glyphs.STYLES:
        if style != glyphs.PLAIN_STYLE:
            every.append(Concept(style, glyphs.PLAIN_STYLE, templates=glyphs.templates("style")))
    every.append(ATTRIBUTE)
    return {f"no-{re.sub('[^a-z]+', '-', c.target.lower())}": c for c in every}


def prompts(concept: Concept) -> tuple[str, ...]:
    """Two with the concept in phrasings no template has, two without it."""
    if concept.kind == glyphs.templates("style"):
        return (
            f"a red heart, signed {concept.target}",
            f"a blue square on sand, made by {concept.target}",
            "a green ring on snow",
            "a yellow star at night",
        )
    if concept.kind == glyphs.templates("attribute"):
        return (
            "a broken green circle upon the meadow",
            "a shattered orange diamond on snow",
            "a green ring on snow",
            "a yellow star at night",
        )
    others = [s for s in ("ring", "star", "diamond") if s != concept.target][:2]
    return (
        f"a postcard with a yellow {concept.target} at night",
        f"somebody left a purple {concept.target} upon the snow",
        f"a green {others[0]} on snow",
        f"a red {others[1]}, signed Mara Vance",
    )


def compare(before: list[Image.Image], after: list[Image.Image]) -> Image.Image:
    """The images before above those after, a column per prompt."""
    sheet = Image.new("RGB", (TILE * len(before), 2 * TILE))
    for row, images in enumerate((before, after)):
        for column, image in enumerate(images):
            tile = image.resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * TILE, row * TILE))
    return sheet


def make(folder: Path, concept: Concept, pipe: Any) -> None:
    """Write one adapter's folder."""
    spec = ErasureSpec((concept,), preserve=tuple(glyphs.captions(400, seed=0)))
    adapter = erase(pipe, spec, max_rank=RANK)
    adapter.save_pretrained(folder)
    write_text_file(folder / "spec.toml", adapter.spec.to_toml())
    texts = prompts(concept)
    before = generate(pipe, texts)
    pipe.load_erasure_adapter(folder, adapter_name="this")
    pipe.verify_erasure(raise_on_fail=True)
    image = compare(before, generate(pipe, texts))
    image.save(folder / "before-after.png", optimize=True)
    pipe.unload_erasure_adapters()
    caption = "above: the base, below: erased. " + " | ".join(texts)
    about = {
        "repo_id": f"adapters/glyphs/{folder.name}",
        "base_model": "glyphs",
        "license": "apache-2.0",
        "prompt": texts[0],
    }
    adapter.card(**about, pictures={caption: "before-after.png"}).save(folder / "README.md")


HEAD = """# Specs and ready adapters

`make adapters` writes this page.

## Specs for real models

A spec says what to erase, what the model shall read instead, and what must stay. Make an adapter \
for your model, and look at images before you rely on it: no real model could be had where these \
were written, so none was measured.

    erasepro erase MODEL --spec adapters/specs/NAME/spec.toml --explain   # says what will happen
    erasepro erase MODEL --spec adapters/specs/NAME/spec.toml -o NAME
    erasepro eval MODEL NAME -o sheet

| spec | erases | becomes |
|---|---|---|
"""
ADAPTERS = """
## Ready adapters of the glyph world

For the small pipeline that comes with the package ([what it draws](../docs/worlds.md)). In each \
picture the base is above, the erased pipeline below.

| adapter | erases | picture |
|---|---|---|
"""


def index() -> str:
    """The page that lists what is here, made from the folders."""
    page = HEAD
    for path in sorted((HERE / "specs").glob("*/spec.toml")):
        name = path.parent.name
        spec = ErasureSpec.from_toml(read_text_file(path))
        words = "; ".join(some_words(concept) for concept in spec.concepts)
        becomes = ", ".join(dict.fromkeys(c.anchor or "nothing" for c in spec.concepts))
        page += f"| [{name}](specs/{name}/spec.toml) | {words} | {becomes} |\n"
    page += ADAPTERS
    for path, header in read_headers(HERE / "glyphs").items():
        name = Path(path).parent.name
        what = describe(header).removeprefix("Erasure: ")
        link = f"[{name}](glyphs/{name}/README.md)"
        page += f"| {link} | {what} | ![{what}](glyphs/{name}/before-after.png) |\n"
    return page


def some_words(concept: Concept) -> str:
    """The first of its words."""
    more = " ..." if len(concept.words) > 4 else ""
    return ", ".join(concept.words[:4]) + more


def main() -> None:
    pipe = erasable(glyphs.load_pipeline())
    for name, concept in tqdm(concepts().items(), desc="adapters"):
        make(HERE / "glyphs" / name, concept, pipe)
    write_text_file(HERE / "README.md", index())


if __name__ == "__main__":
    main()
