"""The model card: a pure function of an adapter's header."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .header import describe, format_measure, list_limits, list_promises, list_selectivity
from .hub import CARD_MARK, is_local

TAGS = ("text-to-image", "diffusers", "lora", "template:sd-lora", "concept-erasure")
HUB_ADDRESSES = ("https://huggingface.co/", "https://hf.co/")
CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots\b")
"""A folder of the Hub's cache; no id has two hyphens side by side."""
GLYPHS = "glyphs"
"""The base that stands for the shipped glyph world, which is no Hub repository."""

LOADING = {
    GLYPHS: (
        "from diffusers_erasepro import erasable, glyphs\n\npipe = erasable(glyphs.load_pipeline())"
    ),
    None: (
        "import torch\n"
        "from diffusers import DiffusionPipeline\n"
        "from diffusers_erasepro import erasable\n\n"
        'pipe = erasable(DiffusionPipeline.from_pretrained("{base}").to(torch.float32))'
    ),
}
SNIPPET = """\
{load}
pipe.load_erasure_adapter("{repo}"{choice}, adapter_name="{name}")
pipe.verify_erasure(raise_on_fail=True)  # measured on the live modules
image = pipe("{prompt}").images[0]  # erased
with pipe.erasure_disabled():
    before = pipe("{prompt}").images[0]  # the base, bit for bit
image.save("after.png")
before.save("before.png")
"""


def build_card(
    header: Mapping[str, Any],
    *,
    repo_id: str = "path/to/this/folder",
    base_model: str | None = None,
    license: str | None = None,
    pictures: Mapping[str, str] | None = None,
    subfolder: str | None = None,
    prompt: str | None = None,
) -> ModelCard:
    """The card of the adapter that `header` describes.

    Args:
        header: `adapter.header()` or `read_header(path)`.
        repo_id: Hub id or folder that the snippet loads.
        base_model: Hub id of the pipeline it was made for, or "glyphs". A path is left out, with a
            warning: it means nothing to others, and they need not know it.
        license: As the Hub spells it, "apache-2.0" say; None leaves the field out.
        pictures: Prompt -> file in the repository, for the gallery.
        subfolder: Folder inside the repository.
        prompt: What the snippet generates; default: the first target.
    """
    known = find_base(base_model)
    if known is None and base_model is not None:
        warnings.warn(f"{refuse_base(base_model)}; the card names no base", stacklevel=2)
    base = None if known == GLYPHS else known
    images = pictures or {}
    gallery = [{"text": text, "output": {"url": file}} for text, file in images.items()]
    data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=list(TAGS),
        base_model=base,
        widget=gallery or None,
    )
    if base:
        data["base_model_relation"] = "adapter"
    code = make_snippet(
        header, repo_id=repo_id, base_model=known, subfolder=subfolder, prompt=prompt
    )
    parts = [
        f"# {describe(header)}",
        "A concept erasure for diffusers: with it on, the text encoder reads the target below as "
        "what it becomes. It was made from text alone, without training, by "
        "[diffusers-erasepro](https://pypi.org/project/diffusers-erasepro/), switches off to the "
        "exact bits of the base, and stacks with others.",
        *(["<Gallery />"] if gallery else []),
        f"## Use\n\n    pip install diffusers-erasepro\n\n```python\n{code}```",
        "Stock `pipe.load_lora_weights` reads the file too. Use it there at strength 1 and without "
        "other erasures: nothing is verified, and files that are added up do not erase exactly.",
        f"## What is erased\n\n{_tabulate_concepts(header)}",
        f"## What was measured when it was made\n\n{_tabulate_layers(header)}",
        *([_bullet(selective)] if (selective := list_selectivity(header)) else []),
        "## What it promises\n\n" + _bullet(list_promises(header)),
        "## What it does not\n\n" + _bullet(list_limits(header)),
        CARD_MARK,
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def refuse_base(name: str) -> str:
    """Why `name` is not published as the base, and what would be."""
    return (
        f"base_model {name!r} is no Hub id 'owner/name' that others could load"
        + (", but a file or folder here" if Path(name).exists() else "")
        + f"; give the id of the model, or {GLYPHS!r}"
    )


def find_base(name: str | None) -> str | None:
    """The base that `name` stands for everywhere, a Hub id or "glyphs"; None if for none.

    The Hub id of an address there, and of a snapshot in the Hub's cache, is in them.
    """
    if name is None or name == GLYPHS:
        return name
    for address in HUB_ADDRESSES:
        name = name.removeprefix(address)
    if cached := CACHED.search(name):
        name = f"{cached[1]}/{cached[2]}"
    if is_local(name) or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def make_snippet(
    header: Mapping[str, Any],
    *,
    repo_id: str,
    base_model: str | None,
    subfolder: str | None = None,
    prompt: str | None = None,
) -> str:
    """Python that loads the adapter, verifies it and generates with and without it."""
    target = header["spec"]["concepts"][0]["target"]
    plain = "".join(c if c.isalnum() and c.isascii() else "-" for c in target.lower())
    loading = LOADING.get(base_model, LOADING[None])
    return SNIPPET.format(
        load=loading.format(base=base_model or "owner/the-base-model"),
        repo=repo_id,
        choice=f', subfolder="{subfolder}"' if subfolder else "",
        name=f"no-{plain[:60]}",
        prompt=prompt or target.replace("\\", "").replace('"', ""),
    )


def _tabulate_concepts(header: Mapping[str, Any]) -> str:
    rows = []
    for concept in header["spec"]["concepts"]:
        synonyms = ", ".join(concept.get("synonyms", ())) or "-"
        templates = concept["templates"]
        if not isinstance(templates, str):
            templates = f"{len(templates)} own"
        rows.append((concept["target"], synonyms, concept["anchor"] or "nothing", templates))
    return _tabulate(("target", "synonyms", "becomes", "templates"), rows)


def _tabulate_layers(header: Mapping[str, Any]) -> str:
    rows = []
    for layer in header["report"]["layers"]:
        size = format_measure(layer["edit_size"], ".3f")
        gap = format_measure(layer["gap"], ".3f")
        rows.append((f"`{layer['name']}`", layer["rank"], size, gap))
    return _tabulate(("layer", "rank", "edit size, of the weight", "gap before"), rows)


def _tabulate(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = []
    for row in (head, ["---"] * len(head), *rows):
        cells = [str(cell).replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bullet(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
