"""Make the ready adapters of the glyph world and the index page: `make adapters`.

Each folder under `glyphs/` gets its spec, weights, card and picture. Run twice on one machine it writes the same bytes;
the Makefile holds torch to one thread, because sums in another order round differently.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.adapters.header import headers_below, title
from diffusers_erasepro.cli.demo import draw

HERE = Path(__file__).parent
ATTRIBUTE = Concept(
    "cracked", anchor="whole", templates="unsafe", synonyms=("broken", "shattered", "fallen")
)
TILE = 64
RANK = 24
"""Most of each layer, so that the folder stays small: about a hundredth of the soft part is cut, and the report says so."""


def concepts() -> dict[str, Concept]:
    """Folder name -> concept: every shape, every style with a hand of its own, the attribute."""
    shapes = [Concept(s, anchor="square" if s == "circle" else "circle") for s in glyphs.SHAPES]
    styles = [
        Concept(s, anchor=glyphs.PLAIN_STYLE, templates="style")
        for s in glyphs.STYLES
        if s != glyphs.PLAIN_STYLE
    ]
    return {
        f"no-{re.sub('[^a-z]+', '-', c.target.lower())}": c for c in (*shapes, *styles, ATTRIBUTE)
    }


def prompts(concept: Concept) -> tuple[str, ...]:
    """Two with the concept in phrasings no template has, two without it."""
    if concept.templates == "style":
        return (
            f"a red heart, signed {concept.target}",
            f"a blue square on sand, made by {concept.target}",
            "a green ring on snow",
            "a yellow star at night",
        )
    if concept.templates == "unsafe":
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


def picture(before: list[Image.Image], after: list[Image.Image]) -> Image.Image:
    """The pictures before above those after, a column per prompt."""
    sheet = Image.new("RGB", (TILE * len(before), 2 * TILE))
    for row, images in enumerate((before, after)):
        for column, image in enumerate(images):
            sheet.paste(
                image.resize((TILE, TILE), Image.Resampling.NEAREST), (column * TILE, row * TILE)
            )
    return sheet


def make(folder: Path, concept: Concept, pipe: Any) -> None:
    """Write one adapter's folder."""
    adapter = erase(
        pipe, ErasureSpec((concept,), preserve=tuple(glyphs.captions(400, seed=0))), max_rank=RANK
    )
    adapter.save_pretrained(folder)
    (folder / "spec.toml").write_text(adapter.spec.to_toml())
    texts = prompts(concept)
    before = draw(pipe, texts)
    pipe.load_erasure_adapter(folder, adapter_name="this")
    pipe.verify_erasure(raise_on_fail=True)
    picture(before, draw(pipe, texts)).save(folder / "before-after.png", optimize=True)
    pipe.unload_erasure_adapters()
    caption = "above: the base, below: erased. " + " | ".join(texts)
    about = {
        "repo_id": f"adapters/glyphs/{folder.name}",
        "base_model": "glyphs",
        "license": "apache-2.0",
        "prompt": texts[0],
    }
    adapter.card(**about, pictures={caption: "before-after.png"}).save(folder / "README.md")


def index() -> str:
    """The page that lists what is here, made from the folders."""
    lines = [
        "# Ready adapters",
        "",
        "Made by `make adapters`; this page too.",
        "",
        "## The glyph world",
        "",
    ]
    lines += [
        "In each picture the base is above, the erased pipeline below.",
        "",
        "| adapter | erases | picture |",
        "|---|---|---|",
    ]
    for path, header in headers_below(HERE / "glyphs").items():
        name = Path(path).parent.name
        what = title(header).removeprefix("Erasure: ")
        lines.append(
            f"| [{name}](glyphs/{name}/README.md) | {what} | ![{what}](glyphs/{name}/before-after.png) |"
        )
    lines += [
        "",
        "## Specs for real models",
        "",
        "Recipes without weights: no real base could be had where they were written, so none ",
    ]
    lines[-1] += (
        "was measured. `erasepro erase MODEL --spec adapters/specs/NAME/spec.toml -o NAME` makes the adapter."
    )
    lines += ["", "| spec | erases | becomes |", "|---|---|---|"]
    for path in sorted((HERE / "specs").glob("*/spec.toml")):
        spec = ErasureSpec.from_toml(path.read_text())
        words = "; ".join(
            ", ".join(c.words[:4]) + (" ..." if len(c.words) > 4 else "") for c in spec.concepts
        )
        becomes = ", ".join(dict.fromkeys(c.anchor or "nothing" for c in spec.concepts))
        lines.append(
            f"| [{path.parent.name}](specs/{path.parent.name}/spec.toml) | {words} | {becomes} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    pipe = erasable(glyphs.load_pipeline())
    for name, concept in tqdm(concepts().items(), desc="adapters"):
        make(HERE / "glyphs" / name, concept, pipe)
    (HERE / "README.md").write_text(index())


if __name__ == "__main__":
    main()
