"""The model card: a pure function of an adapter's header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .header import limits, promises, title
from .hub import CARD_MARK

TAGS = ("text-to-image", "diffusers", "lora", "template:sd-lora", "concept-erasure")
GLYPHS = "glyphs"
"""The base that stands for the shipped glyph world, which is no Hub repository."""

LOADING = {
    GLYPHS: "from diffusers_erasepro import erasable, glyphs\n\npipe = erasable(glyphs.load_pipeline())",
    None: (
        "import torch\nfrom diffusers import DiffusionPipeline\nfrom diffusers_erasepro import erasable\n\n"
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


def card(
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
        base_model: Hub id of the pipeline it was made for, or "glyphs".
        license: As the Hub spells it, "apache-2.0" say; None leaves the field out.
        pictures: Prompt -> file in the repository, for the gallery.
        subfolder: Folder inside the repository.
        prompt: What the snippet draws; default: the first target.
    """
    base = None if base_model == GLYPHS else base_model
    data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=list(TAGS),
        base_model=base,
        widget=[{"text": text, "output": {"url": file}} for text, file in (pictures or {}).items()]
        or None,
    )
    if base:
        data["base_model_relation"] = "adapter"
    parts = [
        f"# {title(header)}",
        "A concept erasure for diffusers, made in closed form by "
        "[diffusers-erasepro](https://pypi.org/project/diffusers-erasepro/); it stacks with others and switches off exactly.",
        *(["<Gallery />"] if pictures else []),
        "## Use\n\n    pip install diffusers-erasepro\n\n"
        f"```python\n{snippet(header, repo_id=repo_id, base_model=base_model, subfolder=subfolder, prompt=prompt)}```",
        "Stock `pipe.load_lora_weights` reads the file too, at strength 1 and alone; it neither verifies nor stacks exactly.",
        f"## What is erased\n\n{_concepts(header)}",
        f"## What was measured when it was made\n\n{_report(header)}",
        "## What it promises\n\n" + _bullets(promises(header)),
        "## What it does not\n\n" + _bullets(limits(header)),
        CARD_MARK,
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def snippet(
    header: Mapping[str, Any],
    *,
    repo_id: str,
    base_model: str | None,
    subfolder: str | None = None,
    prompt: str | None = None,
) -> str:
    """Python that loads the adapter, verifies it and draws with and without it."""
    target = header["spec"]["concepts"][0]["target"]
    return SNIPPET.format(
        load=LOADING.get(base_model, LOADING[None]).format(
            base=base_model or "owner/the-base-model"
        ),
        repo=repo_id,
        choice=f', subfolder="{subfolder}"' if subfolder else "",
        name="no-"
        + "".join(c if c.isalnum() and c.isascii() else "-" for c in target.lower())[:60],
        prompt=prompt or target.replace("\\", "").replace('"', ""),
    )


def _concepts(header: Mapping[str, Any]) -> str:
    rows = [
        (
            c["target"],
            ", ".join(c.get("synonyms", ())) or "-",
            c["anchor"] or "nothing",
            _named(c["templates"]),
        )
        for c in header["spec"]["concepts"]
    ]
    return _table(("target", "synonyms", "becomes", "templates"), rows)


def _named(templates: str | Sequence[str]) -> str:
    return templates if isinstance(templates, str) else f"{len(templates)} own"


def _report(header: Mapping[str, Any]) -> str:
    rows = [
        (f"`{x['name']}`", x["rank"], f"{x['edit_size']:.3f}", f"{x['gap']:.3f}")
        for x in header["report"]["layers"]
    ]
    return _table(("layer", "rank", "edit size, of the weight", "gap before"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
