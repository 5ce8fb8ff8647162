"""Adapters for other tools, and LoRA-format erasures of other tools as adapters."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..adapters.adapter import ErasureAdapter
from ..adapters.header import build_metadata, list_clip_skip_limits, sort_metadata
from ..adapters.report import NAN, LayerReport, Report, frobenius
from ..config.options import OtherMethod
from ..config.spec import ErasureSpec
from ..config.words import count_noun
from ..errors import AdapterFormatError, UnsafeFileError
from ..families.encoders import is_embedding, stored_name
from ..families.pipelines import family_of, get_component
from ..linalg.low_rank import LowRank
from ..modules.fingerprint import fingerprints
from ..modules.linear import base_linear
from ..modules.storage import weight_of
from ..patching.weights import original_weights
from ..prompts.tokens import vocabulary_of

KOHYA = {
    "unet": "lora_unet",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
}
"""Component -> prefix; with several text encoders the first is `lora_te1`."""
REACHED = re.compile(
    r"unet\.|text_encoder(_2)?\.text_model\.encoder\.layers\.|text_encoder_[23]\.encoder\.block\."
)
"""Starts of stored names that some tool reads under its kohya name: the U-Net, CLIP's blocks, and
T5's where it stands beside CLIP."""
T5_BLOCK = re.compile(r"(text_encoder_\d)\.encoder\.block\.")
T5_NOTE = (
    "T5 is there as {prefix}_encoder_block_..., a name of OneTrainer's that ComfyUI reads. A1111, "
    "Forge and InvokeAI load no T5 from it, nor does sd-scripts where it calls T5 otherwise "
    "(lora_te3): there the concept stays in what T5 says."
)
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
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
"""How tools end the names of the two factors."""


ROWS_UNREACHED = (
    "a LoRA file for these tools cannot hold rows of the token embedding, which the default edits: "
    "make the adapter with `erasepro erase ... --layers=0,-1` (in Python layers=(0, -1)), which "
    "edits the first and the last block instead, or export a merged checkpoint (--format "
    "checkpoint --base MODEL)"
)

# --- export


def to_kohya(adapter: ErasureAdapter) -> dict[str, Tensor]:
    """The factors under the names of kohya's scripts, which ComfyUI, A1111 and InvokeAI read too.

    Raises:
        AdapterFormatError: It edits what no tool reads under such a name; leaving it out would
            leave half an erasure.
    """
    if unreached := [name for name in adapter.edits if not REACHED.match(name)]:
        if all(is_embedding(name) for name in unreached):
            raise AdapterFormatError(ROWS_UNREACHED)
        raise AdapterFormatError(
            f"kohya names reach no {unreached[0]} ({len(unreached)} of "
            f"{count_noun(len(adapter.edits), 'edited layer')} in neither U-Net, CLIP blocks, nor "
            "T5 beside CLIP), and without it the erasure would be half; export a merged "
            "checkpoint instead (--format checkpoint)"
        )
    several = {"text_encoder_2", "text_encoder_3"} & {*adapter.components, *adapter.goal_parts}
    names = KOHYA | ({"text_encoder": "lora_te1"} if several else {})
    found = {}
    for key, value in adapter.tensors().items():
        module, _, factor = key.partition(".lora_")
        if factor in KOHYA_FACTORS:
            part, _, path = module.partition(".")
            name = f"{names[part]}_{path.replace('.', '_')}"
            found[f"{name}.{KOHYA_FACTORS[factor]}.weight"] = value
            if factor == "A.weight":
                rank = float(value.shape[0])  # strength = alpha / rank = 1
                found[f"{name}.alpha"] = torch.tensor(rank, dtype=torch.float32)
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
    return (*KOHYA_NOTES, *_list_t5_names(adapter), *list_clip_skip_limits(adapter.header()))


def _list_t5_names(adapter: ErasureAdapter) -> list[str]:
    """What is said of T5's names, if there are any."""
    parts: dict[str, None] = {}
    for name in adapter.edits:
        if found := T5_BLOCK.match(name):
            parts[found[1]] = None
    return [T5_NOTE.format(prefix=KOHYA[part]) for part in parts]


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
    layers_by_name = _name_layers(pipe)
    pairs = _read_pairs(path, pipe, layers_by_name)
    found_in = {
        name: _choose_layer(path, name, layers_by_name[name], pairs[name]) for name in pairs
    }
    edits: dict[str, LowRank] = {}
    layers: list[LayerReport] = []
    for name, factors in sorted(pairs.items()):
        part, root, module = found_in[name]
        stored = stored_name(part, module)
        if stored in edits:
            raise AdapterFormatError(
                f"{path} holds {stored} twice, the second time as {name}; keep one of them"
            )
        weight = weight_of(root, module)
        if weight.ndim != 2 or (factors.B.shape[0], factors.A.shape[1]) != tuple(weight.shape):
            raise AdapterFormatError(
                f"{path}: {name} does not fit {module} of shape {tuple(weight.shape)}; "
                "only linears can be edited"
            )
        edits[stored] = LowRank(factors.B * strength, factors.A)
        size = frobenius(edits[stored]) / float(weight.detach().double().norm())
        layers.append(LayerReport(stored, factors.rank, size, NAN, NAN, 0, 0))
    parts = dict.fromkeys(part for part, _, _ in found_in.values())
    base = {}
    for part in parts:
        root = get_component(pipe, part)
        rows = vocabulary_of(pipe, part)
        base[part] = fingerprints(root, original_weights(root), vocabulary=rows)
    return ErasureAdapter(
        spec,
        OtherMethod(IMPORT, {"strength": strength}),
        base,
        edits,
        {},
        {},
        Report(NAN, NAN, NAN, tuple(layers)),
    )


Layer = tuple[str, nn.Module, str]
"""Component, its module, path of the layer inside it."""


def _name_layers(pipe: Any) -> dict[str, list[Layer]]:
    """Every name a tool may give a layer -> the layers it may mean."""
    family = family_of(pipe)
    found: dict[str, list[Layer]] = {}
    for part in (family.denoiser, *(use.encoder for use in family.encoders)):
        if not isinstance(getattr(pipe, part, None), nn.Module):
            continue
        root = get_component(pipe, part)
        for module, _ in root.named_modules():
            for name in dict.fromkeys(_names_of(part, module)):
                found.setdefault(name, []).append((part, root, module))
    return found


def _names_of(part: str, module: str) -> list[str]:
    """What tools call a layer: with the component in front, bare, and flat as kohya's scripts."""
    tail = stored_name(part, module).partition(".")[2]
    prefixes = [KOHYA.get(part, f"lora_{part}")]
    if part == "text_encoder":
        prefixes.append("lora_te1")
    names: list[str] = []
    for path in (tail, module):
        for spelled in (path, _spell_as_before_peft(path)):
            names += [f"{part}.{spelled}", spelled]
            names += [f"{prefix}_{spelled.replace('.', '_')}" for prefix in prefixes]
    return names


def _spell_as_before_peft(path: str) -> str:
    """The path of an attention linear as diffusers wrote it before 0.22."""
    path = re.sub(r"\.self_attn\.([qkv])_proj$", r".self_attn.to_\1", path)
    path = re.sub(r"\.self_attn\.out_proj$", ".self_attn.to_out", path)
    return path.removesuffix(".0") if path.endswith(".to_out.0") else path


def _choose_layer(path: Path, name: str, layers: list[Layer], factors: LowRank) -> Layer:
    """The layer that a name means; where several have it, the one whose shape fits.

    Raises:
        AdapterFormatError: Several fit.
    """
    if len(layers) == 1:
        return layers[0]
    shape = (factors.B.shape[0], factors.A.shape[1])
    fitting = []
    for layer in layers:
        _, root, module = layer
        weight = getattr(base_linear(root.get_submodule(module)), "weight", None)
        if weight is not None and tuple(weight_of(root, module).shape) == shape:
            fitting.append(layer)
    if len(fitting) > 1:
        raise AdapterFormatError(
            f"{path}: {name} may be a layer of {' or '.join(part for part, _, _ in fitting)}; "
            "put the component in front of the names, as in text_encoder_2.NAME"
        )
    return fitting[0] if fitting else layers[0]


@dataclass(frozen=True)
class _StoredPair:
    """A pair of factors, alpha folded in, and how the file ends its names."""

    factors: LowRank
    down: str
    up: str


def _read_pairs(path: Path, pipe: Any, layers: Mapping[str, list[Layer]]) -> dict[str, LowRank]:
    """Layer name, one of `layers` -> factors with alpha folded in.

    Names that are not known here are given to the pipeline's own reader of LoRA files.

    Raises:
        AdapterFormatError: Neither knows them.
    """
    stored = _find_pairs(path, _read_tensors(path), _read_scales(path))
    found = {name: pair.factors for name, pair in stored.items() if name in layers}
    unknown = {name: pair for name, pair in stored.items() if name not in layers}
    if not unknown:
        return found
    converted = _convert_as_stock(path, pipe, unknown)
    lost = [name for name in converted or unknown if name not in layers]
    if lost or len(converted) < len(unknown):
        first = (lost or list(unknown))[0]
        raise AdapterFormatError(
            f"{path}: {len(lost or unknown)} of {len(stored)} layers are not in this "
            f"{type(pipe).__name__} under that name ({first}), and its stock loader knows them "
            "no better; use the base it was made for, or name them as diffusers does"
        )
    return found | {name: pair.factors for name, pair in converted.items()}


def _convert_as_stock(
    path: Path, pipe: Any, pairs: Mapping[str, _StoredPair]
) -> dict[str, _StoredPair]:
    """The pairs under diffusers' names, as the pipeline's `lora_state_dict` makes them.

    Empty where the pipeline has no such reader, or it does not read these.
    """
    if not hasattr(pipe, "lora_state_dict"):
        return {}
    states: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        states[name + pair.down] = pair.factors.A
        states[name + pair.up] = pair.factors.B
        if pair.down == DOWN_UP[0][0]:
            states[f"{name}.alpha"] = torch.tensor(float(pair.factors.rank), dtype=torch.float32)
    unet = getattr(pipe, "unet", None)
    more = {} if unet is None else {"unet_config": get_component(pipe, "unet").config}
    try:
        found = type(pipe).lora_state_dict(states, **more)
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, ValueError):
        return {}
    plain = found[0] if isinstance(found, tuple) else found
    return _find_pairs(path, _normalise(plain), {})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise UnsafeFileError(
            f"{path} is not a safetensors file; pickles are never loaded, convert it first"
        )
    try:
        return _normalise(load_file(path))
    except SafetensorError as error:
        raise AdapterFormatError(f"{path} is not a readable safetensors file: {error}") from error


def _normalise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In float32, without what wrappers put into names: PEFT's model and adapter, processors."""
    found = {}
    for name, value in tensors.items():
        name = name.replace("base_model.model.", "", 1).replace(".processor.to_", ".to_")
        name = re.sub(r"\.lora_([AB])\.[^.]+\.weight$", r".lora_\1.weight", name)
        found[name] = value.float()
    return found


def _read_scales(path: Path) -> dict[str, Mapping[str, Any]]:
    """Prefix of layer names -> the PEFT settings for them, in the file's header or beside it.

    Raises:
        AdapterFormatError: They cannot be read.
    """
    beside = path.with_name("adapter_config.json")
    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        if not stored and beside.is_file():
            return {"": json.loads(beside.read_text("utf-8"))}
    except (SafetensorError, ValueError) as error:
        raise AdapterFormatError(f"{path}: the settings of its LoRA: {error}") from error
    found: dict[str, dict[str, Any]] = {}
    for key, value in stored.items():
        part, _, setting = key.partition(".")
        found.setdefault(f"{part}.", {})[setting] = value
    return dict(found)


def _scale_of(name: str, rank: int, scales: Mapping[str, Mapping[str, Any]]) -> float:
    """What PEFT multiplies a layer's B A by, with these settings; 1 without any."""
    for prefix, settings in scales.items():
        if not name.startswith(prefix):
            continue
        module = name.removeprefix(prefix)
        alpha = settings.get("lora_alpha", rank)
        for pattern, own in (settings.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = own
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return 1.0


def _find_pairs(
    path: Path, tensors: Mapping[str, Tensor], scales: Mapping[str, Mapping[str, Any]]
) -> dict[str, _StoredPair]:
    """Layer name, as the tool spells it -> factors with alpha folded in.

    Raises:
        AdapterFormatError: It holds anything else.
    """
    found: dict[str, _StoredPair] = {}
    used: set[str] = set()
    for key, value in tensors.items():
        for down, up in DOWN_UP:
            name = key.removesuffix(down)
            if name in found or not key.endswith(down) or name + up not in tensors:
                continue
            factors = _fold_alpha(path, name, tensors, value, tensors[name + up])
            if f"{name}.alpha" not in tensors:
                scale = _scale_of(name, factors.rank, scales)
                factors = LowRank(factors.B * scale, factors.A)
            found[name] = _StoredPair(factors, down, up)
            used |= {key, name + up, f"{name}.alpha"}
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
    alpha = tensors.get(f"{name}.alpha")
    scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
    return LowRank(up * scale, down)
