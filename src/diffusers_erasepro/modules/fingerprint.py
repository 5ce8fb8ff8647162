"""Which weights an adapter was made for: a short hash per component and dtype."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from .hooks import refuse_on_disk
from .linear import FUSED, as_linear, dtype_of, plain_weight, quantisation_of, resident_tensor
from .tuners import stock_modules

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SAMPLES = 256
"""Values sampled per parameter. A fine-tune changes all of them, and hashing every value would
take seconds."""
HEX_DIGITS = 32


def base_parameters(
    root: nn.Module, originals: Mapping[str, Tensor], vocabulary: int | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Parameters by stock name, without what PEFT added and without fused copies.

    Args:
        root: A component.
        originals: Module name -> the weight `(d_out, d_in)` to take in place of the edited one.
        vocabulary: Rows of the token embedding that count: those after them are learned tokens,
            or never read. None for all.
    """
    refuse_on_disk(root)
    table = token_table(root)
    head = _stock_module(root, "get_output_embeddings")
    tokens = [module._parameters.get("weight") for module in (table, head) if module is not None]
    modules = list(_modules_to_count(root, table))
    unedited = {}  # by parameter: of T5's table with two names, one is edited
    for path, module in modules:
        if (original := originals.get(path.removeprefix("text_model."))) is not None:
            unedited[id(module._parameters.get("weight"))] = as_linear(module, original)
    for path, module in modules:
        plain = path.removeprefix("text_model.")
        if plain.rpartition(".")[2] in FUSED:
            continue
        # its own only: `named_parameters` takes as long as all the rest
        for name, value in module._parameters.items():
            if value is None:
                continue
            found = unedited.get(id(value))
            if found is None:
                found = _live_values(module, name)
            # also of what is tied to the table, and of the head that predicts tokens
            row_per_token = any(value is weight for weight in tokens)
            yield f"{plain}.{name}", found[:vocabulary] if row_per_token else found


def _modules_to_count(root: nn.Module, table: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """As `stock_modules`; a token embedding that is one module in two places is there twice.

    T5's has two names. They are two modules with one weight as transformers makes it, and one
    module once a textual inversion was unloaded.
    """
    for path, module in stock_modules(root):
        yield path, module
        if module is table:
            for other, same in stock_modules(root, every_name=True):
                if same is table and other != path:
                    yield other, same


def token_table(root: nn.Module) -> nn.Module | None:
    """The token embedding of a text encoder, below PEFT; None of any other component."""
    return _stock_module(root, "get_input_embeddings")


def _stock_module(root: nn.Module, getter: str) -> nn.Module | None:
    """What a method of transformers' names of a model, below PEFT; None where there is neither."""
    find: Any = getattr(root, getter, None)
    found = find() if find else None
    return next(stock_modules(found))[1] if isinstance(found, nn.Module) else None


def fingerprint_learned(root: nn.Module, vocabulary: int | None) -> str:
    """A fingerprint of the rows that a text encoder's token embedding has beyond its vocabulary.

    Those of textual inversions are there. No erasure is bound to them, but what was computed from
    prompts that name them is.
    """
    table = token_table(root)
    if table is None or vocabulary is None:
        return ""
    rows = resident_tensor(table, "weight").detach()[vocabulary:]
    return hashlib.sha256(rows.float().cpu().numpy().tobytes()).hexdigest()[:HEX_DIGITS]


def _live_values(module: nn.Module, name: str) -> Tensor:
    if name == "weight" and isinstance(module, nn.Linear) and quantisation_of(module):
        return plain_weight(module)
    return resident_tensor(module, name)


def fingerprint(
    root: nn.Module,
    dtype: torch.dtype,
    originals: Mapping[str, Tensor],
    vocabulary: int | None = None,
) -> str:
    """SHA-256 over names, shapes and an even sample of every parameter, rounded to `dtype`."""
    return fingerprints(root, originals, {"": dtype}, vocabulary=vocabulary)[""]


def fingerprints(
    root: nn.Module,
    originals: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype] | None = None,
    *,
    vocabulary: int | None = None,
) -> dict[str, str]:
    """One fingerprint per dtype that the weights may be loaded in.

    Without `dtypes`, these are all of `DTYPES` for a float32 model, and its own for another:
    rounding cannot be undone. `vocabulary` as for `base_parameters`.
    """
    live = dtype_of(root)
    dtypes = dtypes or {n: d for n, d in DTYPES.items() if live == torch.float32 or d == live}
    parameters = sorted(base_parameters(root, originals, vocabulary), key=lambda item: item[0])
    headers = [f"{name}{tuple(value.shape)}".encode() for name, value in parameters]
    samples = [_sample(value.detach().reshape(-1)) for _, value in parameters]
    ends = [0, *accumulate(map(len, samples))]
    values = torch.cat(samples)  # rounded all at once: there are hundreds of parameters
    found = {}
    for key, dtype in dtypes.items():
        digest = hashlib.sha256()
        rounded = values.to(dtype).float().numpy()
        for header, start, end in zip(headers, ends, ends[1:], strict=False):
            digest.update(header)
            digest.update(rounded[start:end].tobytes())
        found[key] = digest.hexdigest()[:HEX_DIGITS]
    return found


def _sample(flat: Tensor) -> Tensor:
    return flat[:: max(1, flat.numel() // SAMPLES)].cpu().float()


def fingerprint_with_loras(root: nn.Module, base: Mapping[str, str]) -> str:
    """A fingerprint of what the component computes: its `base` fingerprints, and PEFT's layers."""
    digest = hashlib.sha256(repr(sorted(base.items())).encode())
    stock = {id(module) for _, module in stock_modules(root)}
    for path, module in root.named_modules():
        if id(module) in stock:
            continue
        digest.update(repr((path, *_switches(module))).encode())
        for value in _tensors(module):
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:HEX_DIGITS]


def _switches(module: Any) -> list[object]:
    """What a layer of PEFT's computes with beside its tensors."""
    found: list[object] = [type(module).__name__]
    for name in ("active_adapters", "merged_adapters", "disable_adapters"):
        found.append(getattr(module, name, None))
    for name in getattr(module, "other_param_names", ()):
        values = getattr(module, name, None)
        if isinstance(values, Mapping):
            plain = {k: v for k, v in values.items() if isinstance(v, (bool, int, float, str))}
            found.append((name, sorted(plain.items())))
    return found


def _tensors(module: Any) -> Iterator[Tensor]:
    """A module's own parameters and buffers, and tensors that a layer of PEFT's keeps in tables."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
    for name in getattr(module, "other_param_names", ()):
        values = getattr(module, name, None)
        if isinstance(values, Mapping):
            yield from (value for value in values.values() if isinstance(value, Tensor))
