"""Edited checkpoints as adapters: the difference to the base in low-rank factors."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..adapters.adapter import ErasureAdapter
from ..adapters.file import digest_tensors
from ..adapters.report import NAN
from ..baselines.assembly import assemble_adapter
from ..config.options import OtherMethod
from ..config.spec import Concept, ErasureSpec
from ..erasure.float32 import in_float32
from ..errors import AdapterFormatError, BaseModelMismatchError, UnsafeFileError
from ..families.pipelines import family_of, get_component
from ..linalg.low_rank import LowRank
from ..patching.weights import unedited

States = dict[str, Tensor]
ORIGINAL = "model.diffusion_model."
"""Prefix of the denoiser in checkpoints of the first Stable Diffusion code."""


def adapter_from_checkpoint(
    base: Any, edited: Any, *, spec: ErasureSpec | Concept | None = None, error: float = 1e-3
) -> ErasureAdapter:
    """The adapter that turns `base` into `edited`, where they differ in linear weights.

    Args:
        base: The pipeline that was edited; it stays as it is.
        edited: A pipeline, a denoiser, a state dict, or a file (`.safetensors`, `.pt`, `.ckpt`,
            `.bin`) or folder of one; whole or only the changed tensors, in diffusers' names or
            those of the first code.
        spec: What it claims to erase: what its residual is measured on. Without, there is nothing
            to measure, and `verify_erasure` will not vouch for it.
        error: Largest relative error of each layer's low-rank factors; the report says what was
            reached.

    Returns:
        An adapter without keys: beside others it is added, not solved again.

    Raises:
        BaseModelMismatchError: Tensors the base does not have, or of other shapes.
        AdapterFormatError: No readable checkpoint, no difference, or one outside linear weights.
        UnsafeFileError: A pickle that holds more than tensors.
    """
    family = family_of(base)
    parts = [use.encoder for use in family.encoders] + [family.denoiser]
    with unedited(base), torch.no_grad():
        found = {
            part: _select_component(
                part, family.denoiser, state_dict_of(edited), get_component(base, part)
            )
            for part in parts
        }
        changes = {
            part: _subtract_base(part, get_component(base, part), states)
            for part, states in found.items()
            if states
        }
        if not any(changes.values()):
            raise AdapterFormatError(
                "the checkpoint holds the weights of the base; there is no edit to import"
            )
        edits: dict[str, dict[str, LowRank]] = {}
        differences: States = {}
        for part, changed in changes.items():
            for name, D in changed.items():
                factors = LowRank(D, torch.eye(D.shape[1], dtype=torch.float64))
                edits.setdefault(part, {})[name] = factors
                differences[f"{part}.{name}"] = D
        digest = digest_tensors(differences)
        claimed = spec or Concept(f"import {digest[:8]}")
        if isinstance(claimed, Concept):
            claimed = ErasureSpec((claimed,))
        with in_float32(get_component(base, family.encoders[0][0])) as encoder:
            adapter = assemble_adapter(
                base,
                family,
                claimed,
                OtherMethod("import", {"sha256": digest}),
                encoder,
                edits,
                error=error,
            )
    if spec is None:
        unknown = replace(
            adapter.report, listed_residual=NAN, held_out_residual=NAN, held_out_mean=NAN
        )
        adapter = replace(adapter, report=unknown, goals={})
    return adapter


def state_dict_of(edited: Any) -> States:
    """The state dict of whatever holds one; of a pipeline, with the component's name in front."""
    if isinstance(edited, nn.Module):
        return edited.state_dict()
    if isinstance(edited, Mapping):
        return _keep_tensors(edited)
    if isinstance(edited, (str, os.PathLike)):
        return _read(Path(edited))
    modules = {n: m for n, m in edited.components.items() if isinstance(m, nn.Module)}
    states: States = {}
    for component, module in modules.items():
        states |= {f"{component}.{name}": v for name, v in module.state_dict().items()}
    return states


def _read(path: Path) -> States:
    if path.is_dir():
        readable = [f for f in sorted(path.rglob("*")) if f.suffix in FILE_READERS]
        files = [f for f in readable if "vae" not in f.parent.name]
        parts = {f.parent.name if f.parent != path else "": _read(f) for f in files}
        merged: States = {}
        for part, states in parts.items():
            prefix = f"{part}." if part else ""
            merged |= {prefix + name: value for name, value in states.items()}
        return merged
    if path.suffix not in FILE_READERS or not path.is_file():
        raise AdapterFormatError(
            f"{path} is no checkpoint: give a folder or a file of type {', '.join(FILE_READERS)}"
        )
    try:
        return FILE_READERS[path.suffix](path)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"{path} is a pickle with more than tensors; convert it to safetensors where it is safe"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise AdapterFormatError(f"{path} is not a readable checkpoint: {error}") from error


def _unpickle(path: Path) -> States:
    return _keep_tensors(torch.load(path, map_location="cpu", weights_only=True))


FILE_READERS: dict[str, Callable[[Path], States]] = {
    ".safetensors": load_file,
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _unpickle),
}


def _keep_tensors(states: Mapping[str, Any]) -> States:
    """The tensors of a state dict, also where training code put it below "state_dict" or "unet"."""
    for name in ("state_dict", "unet"):
        if isinstance(states.get(name), Mapping):
            return _keep_tensors(states[name])
    return {k: v for k, v in states.items() if isinstance(v, Tensor)}


def _select_component(part: str, denoiser: str, states: States, root: nn.Module) -> States:
    """The tensors of one component, in its own names."""
    if any(k.startswith(ORIGINAL) for k in states):
        config: Any = root.config
        return convert_ldm_unet_checkpoint(dict(states), config) if part == denoiser else {}
    mine = {k.removeprefix(f"{part}."): v for k, v in states.items() if k.startswith(f"{part}.")}
    has_parts = any(k.split(".")[0] in ("unet", "text_encoder", "transformer") for k in states)
    return mine if mine or has_parts or part != denoiser else states


def _subtract_base(part: str, root: nn.Module, states: States) -> dict[str, Tensor]:
    """Module name -> D in float64, of the linear weights that differ."""
    base = root.state_dict()
    found: dict[str, Tensor] = {}
    others: list[str] = []
    for name, value in states.items():
        have = base.get(
            name, base.get(f"text_model.{name}", base.get(name.removeprefix("text_model.")))
        )
        if have is None or have.shape != value.shape:
            what = "no such tensor" if have is None else f"shape {tuple(have.shape)}"
            raise BaseModelMismatchError(
                f"{part}.{name} is {tuple(value.shape)} in the checkpoint, the base has {what}; "
                "give the base it was made from"
            )
        # a 16-bit checkpoint rounded what it did not edit too
        D = value.double().cpu() - have.to(value.dtype).double().cpu()
        if not D.any():
            continue
        if D.ndim == 2 and isinstance(
            root.get_submodule(module := name.rpartition(".")[0]), nn.Linear
        ):
            found[module] = D
        else:
            others.append(name)
    if others:
        raise AdapterFormatError(
            f"{part}: {len(others)} changed tensors are no linear weights (first {others[0]}), "
            "which an adapter cannot hold; only edits of linear weights can be imported"
        )
    return found
