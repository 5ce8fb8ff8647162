"""One record per text-encoder family and per pipeline family; nothing else knows their module names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from .errors import AdapterStateError, UnknownFamilyError


@dataclass(frozen=True)
class EncoderFamily:
    """A text encoder: where its blocks are and which linear of a block writes the residual stream last."""

    classes: tuple[str, ...]
    blocks: tuple[str, ...]
    """Candidate paths of the block list; transformers 5.6 dropped `text_model.` from CLIPTextModel."""
    writer: str
    """Inside a block."""
    linears: tuple[str, ...]
    """Every linear inside a block, in the order they run."""
    padding_row: str
    """An attention linear inside a block: stock loaders refuse CLIP files without any (diffusers 0.42)."""
    file_blocks: str
    """Path of the block list in files, the spelling every stock loader maps."""


@dataclass(frozen=True)
class PipelineFamily:
    """A pipeline: which tokenizer belongs to which encoder, and which denoiser linears read the text states."""

    pipelines: tuple[str, ...]
    encoders: tuple[tuple[str, str], ...]
    """`(encoder, tokenizer)` component names."""
    denoiser: str
    readers: str
    """Pattern of the denoiser's K/V linears."""


T = TypeVar("T")

ENCODERS = (
    EncoderFamily(
        classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
        blocks=("encoder.layers", "text_model.encoder.layers"),
        writer="mlp.fc2",
        linears=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
        padding_row="self_attn.out_proj",
        file_blocks="text_model.encoder.layers",
    ),
)

PIPELINES = (
    PipelineFamily(
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionControlNetPipeline",
        ),
        encoders=(("text_encoder", "tokenizer"),),
        denoiser="unet",
        readers=r"\.attn2\.to_[kv]$",
    ),
)


def _record(obj: object, table: tuple[T, ...], names: str, what: str) -> T:
    mro = [c.__name__ for c in type(obj).__mro__]
    for record in table:
        if set(getattr(record, names)) & set(mro):
            return record
    known = ", ".join(n for r in table for n in getattr(r, names))
    raise UnknownFamilyError(f"{mro[0]} is not a known {what} (known: {known}); see docs/families.md to add one")


def family_of(pipe: object) -> PipelineFamily:
    """The record of a pipeline, found by its class or a base class."""
    return _record(pipe, PIPELINES, "pipelines", "pipeline family")


def encoder_family_of(encoder: object) -> EncoderFamily:
    """The record of a text encoder."""
    return _record(encoder, ENCODERS, "classes", "text-encoder family")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module below a `torch.compile` wrapper."""
    return getattr(module, "_orig_mod", module)


def base_linear(module: nn.Module) -> nn.Module:
    """The linear below a PEFT wrapper."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module  # type: ignore[operator]


def component(pipe: Any, name: str) -> nn.Module:
    """A component of the pipeline that is really there."""
    module = getattr(pipe, name, None)
    if module is None:
        raise AdapterStateError(f"the pipeline's {name} is None; load the pipeline with its {name} to erase there")
    return unwrapped(module)


def blocks_of(encoder: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a text encoder, shallow to deep."""
    return encoder.get_submodule(_blocks_path(encoder))  # type: ignore[return-value]


def _blocks_path(encoder: nn.Module) -> str:
    names = {name for name, _ in encoder.named_modules()}
    paths = encoder_family_of(encoder).blocks
    for path in paths:
        if path in names:
            return path
    raise UnknownFamilyError(f"{type(encoder).__name__} has no block list at {' or '.join(paths)}")


@dataclass(frozen=True)
class Site:
    """A linear to edit, and the module whose output shall be the anchor's afterwards."""

    linear: str
    closes: str


VARIANTS: dict[str, Callable[[EncoderFamily, str], list[Site]]] = {
    "block": lambda family, block: [Site(f"{block}.{family.writer}", block)],
    "linear": lambda family, block: [Site(f"{block}.{name}", f"{block}.{name}") for name in family.linears],
}
"""`block` edits the linear that writes the residual stream last, until the stream itself is the anchor's (our
reading); `linear` edits every linear, until its own output is the anchor's (the paper's formula, read literally)."""


def sites_of(encoder: nn.Module, blocks: Sequence[int], variant: str) -> list[Site]:
    """What is edited in `blocks`, in the order it runs."""
    family, path = encoder_family_of(encoder), _blocks_path(encoder)
    return [site for block in blocks for site in VARIANTS[variant](family, f"{path}.{block}")]


def reader_paths(denoiser: nn.Module, family: PipelineFamily) -> list[str]:
    """Module names of the K/V linears that read the text states, PEFT wrappers looked through."""
    pattern = re.compile(family.readers)
    return [name for name, _ in denoiser.named_modules() if pattern.search(name)]


def file_name(component_name: str, module_name: str) -> str:
    """Spelling of a module in a file: CLIP blocks always under `text_model.`, which every loader maps."""
    for family in ENCODERS:
        for path in sorted(family.blocks, key=len):
            if component_name.startswith("text_encoder") and module_name.startswith(path + "."):
                return f"{component_name}.{family.file_blocks}{module_name[len(path) :]}"
    return f"{component_name}.{module_name}"


def module_name(root: nn.Module, stored: str) -> str | None:
    """The live name of a module written by `file_name`, or None if `root` has no such module."""
    names = {name for name, _ in root.named_modules()}
    spellings = [stored, stored.removeprefix("text_model."), f"text_model.{stored}"]
    return next((s for s in spellings if s in names), None)
