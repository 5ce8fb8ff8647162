"""Edited checkpoints as adapters: the difference to the base in low-rank factors."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..adapters.adapter import ErasureAdapter
from ..adapters.file import digest_tensors
from ..baselines.assembly import assemble_adapter, reads_last_states_alone
from ..config.options import OtherMethod
from ..config.spec import Concept, ErasureSpec
from ..erasure.float32 import in_float32
from ..errors import AdapterFormatError, BaseModelMismatchError, UnsafeFileError
from ..families.pipelines import family_of, get_component
from ..linalg.low_rank import LowRank
from ..patching.weights import unedited
from ..prompts.tokens import text_paths

States = dict[str, Tensor]
ORIGINAL = "model.diffusion_model."
"""Prefix of the denoiser in checkpoints of the first Stable Diffusion code."""
ORIGINAL_CLIP = "cond_stage_model.transformer."
"""Prefix of its text encoder there."""
WRAPPERS = ("state_dict", "unet", "text_encoder", "model")
"""Where training code puts a state dict."""


def adapter_from_checkpoint(
    base: Any, edited: Any, *, spec: ErasureSpec | Concept | None = None, error: float = 1e-3
) -> ErasureAdapter:
    """The adapter that turns `base` into `edited`, where they differ in linear weights.

    Args:
        base: The pipeline that was edited; it stays as it is.
        edited: A pipeline, a denoiser or text encoder alone, a state dict, or a file
            (`.safetensors`, `.pt`, `.ckpt`, `.bin`) or folder of one; whole or only the changed
            tensors, in diffusers' names or those of the first code.
        spec: What it claims to erase: what its residual is measured on, where the pipeline reads
            the last states of one text encoder. Elsewhere, or without a spec, there is nothing to
            measure, and `verify_erasure` will not vouch for it.
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
    encoders = [path.use.encoder for path in text_paths(base)]
    parts = [*encoders, family.denoiser]
    roots = {part: get_component(base, part) for part in parts}
    states = state_dict_of(edited)
    with unedited(base), torch.no_grad():
        found = _split_components(states, roots, family.denoiser)
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
        with in_float32(roots[encoders[0]]) as encoder:
            return assemble_adapter(
                base,
                family,
                claimed,
                OtherMethod("import", {"sha256": digest}),
                encoder,
                edits,
                error=error,
                measure=spec is not None and reads_last_states_alone(base),
            )


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
    """The tensors of a state dict, also where training code put it below another name."""
    for name in WRAPPERS:
        if isinstance(states.get(name), Mapping):
            return _keep_tensors(states[name])
    return {k: v for k, v in states.items() if isinstance(v, Tensor)}


def _split_components(
    states: States, roots: Mapping[str, nn.Module], denoiser: str
) -> dict[str, States]:
    """Component -> its tensors, in its own names.

    Names without a component in front are all of one: the one that they fit.

    Raises:
        BaseModelMismatchError: They fit several.
    """
    if any(name.startswith((ORIGINAL, ORIGINAL_CLIP)) for name in states):
        return _split_original(states, roots, denoiser)
    found = {}
    for part in roots:
        prefix = f"{part}."
        mine = {k.removeprefix(prefix): v for k, v in states.items() if k.startswith(prefix)}
        found[part] = {k: v for k, v in mine.items() if not _is_counter(k)}
    if any(found.values()):
        return found
    bare = {k: v for k, v in states.items() if not _is_counter(k)}
    misfits = {part: _count_misfits(root, bare) for part, root in roots.items()}
    least = min(misfits.values())
    fitting = [part for part, count in misfits.items() if count == least]
    if least == 0 and len(fitting) > 1:
        raise BaseModelMismatchError(
            f"the checkpoint's names and shapes fit {' and '.join(fitting)} alike; put the "
            f"component in front of the names, as in {fitting[-1]}.{next(iter(bare), 'NAME')}"
        )
    part = denoiser if denoiser in fitting else fitting[0]
    return {part: bare}


def _split_original(
    states: States, roots: Mapping[str, nn.Module], denoiser: str
) -> dict[str, States]:
    """Component -> its tensors, of names as in the first Stable Diffusion code."""
    found: dict[str, States] = {}
    config: Any = roots[denoiser].config
    if any(name.startswith(ORIGINAL) for name in states):
        found[denoiser] = convert_ldm_unet_checkpoint(dict(states), config)
    mine = {}
    for name, value in states.items():
        plain = name.removeprefix(ORIGINAL_CLIP)
        if plain != name and not _is_counter(plain):
            mine[plain] = value
    return found | ({"text_encoder": mine} if mine and "text_encoder" in roots else {})


def _is_counter(name: str) -> bool:
    """Whether it is 0, 1, 2, ..., which older versions of transformers kept with the weights."""
    return name.endswith("position_ids")


def _live_name(base: States, name: str) -> str:
    """The base's spelling of a name, with or without CLIP's `text_model.` in front."""
    for spelled in (name, f"text_model.{name}", name.removeprefix("text_model.")):
        if spelled in base:
            return spelled
    return name


def _count_misfits(root: nn.Module, states: States) -> int:
    """How many tensors the component has not, or of another shape."""
    base = root.state_dict()
    count = 0
    for name, value in states.items():
        have = base.get(_live_name(base, name))
        count += have is None or have.shape != value.shape
    return count


def _subtract_base(part: str, root: nn.Module, states: States) -> dict[str, Tensor]:
    """Module name -> D in float64, of the linear weights that differ."""
    base = root.state_dict()
    found: dict[str, Tensor] = {}
    others: list[str] = []
    for name, value in states.items():
        live = _live_name(base, name)
        have = base.get(live)
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
        module = live.rpartition(".")[0]
        if D.ndim == 2 and isinstance(root.get_submodule(module), nn.Linear):
            found[module] = D
        else:
            others.append(name)
    if others:
        raise AdapterFormatError(
            f"{part}: {len(others)} changed tensors are no linear weights (first {others[0]}), "
            "which an adapter cannot hold; only edits of linear weights can be imported"
        )
    return found
