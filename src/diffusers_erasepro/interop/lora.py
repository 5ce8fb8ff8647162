"""Adapters for other tools, and LoRA-format erasures of other tools as adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..adapters.adapter import ErasureAdapter
from ..adapters.header import build_metadata, list_clip_skip_limits, sort_metadata
from ..adapters.report import NAN, LayerReport, Report, frobenius
from ..config.options import OtherMethod
from ..config.spec import ErasureSpec
from ..errors import AdapterFormatError, UnsafeFileError
from ..families.encoders import stored_name
from ..families.pipelines import get_component
from ..linalg.low_rank import LowRank
from ..modules.fingerprint import fingerprints
from ..modules.storage import weight_of
from ..patching.weights import original_weights

KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
"""Component -> prefix; with two text encoders the first is `lora_te1`."""
KOHYA_FACTORS = {"A.weight": "lora_down", "B.weight": "lora_up"}
KOHYA_NOTES = (
    "ComfyUI, A1111, Forge and InvokeAI apply it at the strength the user sets; only 1.0 erases as "
    "measured.",
    "They add several erasures up instead of solving them together, and verify nothing.",
)
IMPORT = "import"
DOWN_UP = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)
"""How tools end the names of the two factors."""


# --- export


def to_kohya(adapter: ErasureAdapter) -> dict[str, Tensor]:
    """The factors under the names of kohya's scripts, which ComfyUI, A1111 and InvokeAI read too.

    Raises:
        AdapterFormatError: It edits a component that those names do not reach; leaving it out
            would leave half an erasure.
    """
    if unknown := [c for c in adapter.components if c not in KOHYA]:
        raise AdapterFormatError(
            f"kohya names reach no {unknown[0]}, and without it the erasure would be half; "
            "export a merged checkpoint instead (--format checkpoint)"
        )
    names = KOHYA | ({"text_encoder": "lora_te1"} if "text_encoder_2" in adapter.components else {})
    found = {}
    for key, value in adapter.tensors().items():
        module, _, factor = key.partition(".lora_")
        if factor in KOHYA_FACTORS:
            part, _, path = module.partition(".")
            name = f"{names[part]}_{path.replace('.', '_')}"
            found[f"{name}.{KOHYA_FACTORS[factor]}.weight"] = value
            if factor == "A.weight":
                found[f"{name}.alpha"] = torch.tensor(
                    float(value.shape[0])
                )  # strength = alpha / rank = 1
    return dict(sorted(found.items()))


def export_kohya(adapter: ErasureAdapter, path: Path) -> tuple[str, ...]:
    """Write the adapter for ComfyUI, A1111, Forge, InvokeAI and sd-scripts.

    Returns:
        What those tools do not do, in sentences.

    Raises:
        AdapterFormatError: As `to_kohya`.
    """
    about = {
        k: v for k, v in build_metadata(adapter.header()).items() if k != "erasepro"
    }  # it is no adapter file any more
    content = sort_metadata(to_bytes(to_kohya(adapter), metadata=about))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return (*KOHYA_NOTES, *list_clip_skip_limits(adapter.header()))


# --- import


def import_lora(
    path: Path, pipe: Any, spec: ErasureSpec, *, strength: float = 1.0
) -> ErasureAdapter:
    """A LoRA-format erasure (SPM, LECO, concept slider, ESD-LoRA) as an adapter, without keys.

    It stacks and switches as others do; its effect cannot be measured, so `verify_erasure` says so.

    Args:
        path: A safetensors file with kohya, PEFT or older diffusers names.
        pipe: The base it was trained on.
        spec: What it erases, for the record.
        strength: Factor; negative for a slider trained towards the concept.

    Raises:
        UnsafeFileError: Not safetensors.
        AdapterFormatError: Not a LoRA, or it changes what an adapter cannot: convolutions, unknown
            layers.
    """
    pairs = _pairs(path)
    layers_by_name = _name_layers(pipe)
    if lost := [name for name in pairs if name not in layers_by_name]:
        raise AdapterFormatError(
            f"{path}: {len(lost)} of {len(pairs)} layers are not in this pipeline ({lost[0]}); "
            "use the base it was made for"
        )
    edits: dict[str, LowRank] = {}
    layers: list[LayerReport] = []
    for name, factors in sorted(pairs.items()):
        part, root, module = layers_by_name[name]
        stored = stored_name(part, module)
        weight = weight_of(root, module)
        if weight.ndim != 2 or (factors.B.shape[0], factors.A.shape[1]) != tuple(weight.shape):
            raise AdapterFormatError(
                f"{path}: {name} does not fit {module} of shape {tuple(weight.shape)}; "
                "only linears can be edited"
            )
        edits[stored] = LowRank(factors.B * strength, factors.A)
        size = frobenius(edits[stored]) / float(weight.detach().double().norm())
        layers.append(LayerReport(stored, factors.rank, size, NAN, NAN, 0, 0))
    parts = dict.fromkeys(layers_by_name[name][0] for name in pairs)
    base = {
        part: fingerprints(get_component(pipe, part), original_weights(get_component(pipe, part)))
        for part in parts
    }
    return ErasureAdapter(
        spec,
        OtherMethod(IMPORT, {"strength": strength}),
        base,
        edits,
        {},
        {},
        Report(NAN, NAN, NAN, tuple(layers)),
    )


def _name_layers(pipe: Any) -> dict[str, tuple[str, nn.Module, str]]:
    """Every name a tool may give a layer -> component, module, path inside it."""
    found: dict[str, tuple[str, nn.Module, str]] = {}
    for part, prefix in KOHYA.items():
        if isinstance(getattr(pipe, part, None), nn.Module):
            root = get_component(pipe, part)
            for module, _ in root.named_modules():
                stored = stored_name(part, module)
                tail = stored.partition(".")[2].replace(".", "_")
                names = [
                    stored,
                    f"{part}.{module}",
                    f"{prefix}_{tail}",
                    *([f"lora_te1_{tail}"] if part == "text_encoder" else []),
                ]
                found |= dict.fromkeys(names, (part, root, module))
    return found


def _pairs(path: Path) -> dict[str, LowRank]:
    """Layer name, as the tool spells it -> factors with alpha folded in."""
    if path.suffix != ".safetensors":
        raise UnsafeFileError(
            f"{path} is not a safetensors file; pickles are never loaded, convert it first"
        )
    try:
        tensors = {
            k.replace(".processor.to_", ".to_"): v.float() for k, v in load_file(path).items()
        }
    except SafetensorError as error:
        raise AdapterFormatError(f"{path} is not a readable safetensors file: {error}") from error
    found: dict[str, LowRank] = {}
    for name in tensors:
        for down, up in DOWN_UP:
            if name.endswith(down) and (other := name.removesuffix(down) + up) in tensors:
                found[name.removesuffix(down)] = _fold_alpha(
                    path, name.removesuffix(down), tensors, tensors[name], tensors[other]
                )
    used: set[str] = set()
    for name in found:
        used.add(f"{name}.alpha")
        for down, up in DOWN_UP:
            used |= {name + down, name + up}
    if rest := sorted(set(tensors) - used):
        raise AdapterFormatError(
            f"{path} is not only low-rank pairs ({rest[0]}); it cannot be imported"
        )
    return found


def _fold_alpha(
    path: Path, name: str, tensors: Mapping[str, Tensor], down: Tensor, up: Tensor
) -> LowRank:
    if down.ndim != 2:
        if down.shape[2:].numel() > 1 or up.shape[2:].numel() > 1:
            raise AdapterFormatError(
                f"{path}: {name} is a convolution {tuple(down.shape)}; only linears can be imported"
            )
        down = down.flatten(1)
        up = up.flatten(1)
    scale = float(tensors.get(f"{name}.alpha", torch.tensor(float(down.shape[0])))) / down.shape[0]
    return LowRank(up * scale, down)
