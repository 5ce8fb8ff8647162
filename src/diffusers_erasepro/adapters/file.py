"""The adapter file: factors, keys and goals as tensors of one LoRA-shaped safetensors file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import AdapterFormatError, AdapterIntegrityError
from ..families.encoders import ENCODERS, is_embedding, stored_name
from ..linalg.low_rank import LowRank
from .header import build_metadata, sort_metadata

KEY_PREFIX = "erasepro.lora_keys."
GOAL_PREFIX = "erasepro.lora_goal."
"""Prefixes of our own tensors.

Stock loaders ignore a tensor whose name holds "lora" and no component (diffusers 0.42).
"""


@dataclass(frozen=True)
class StoredTensors:
    """What the tensors of a file stand for."""

    edits: dict[str, LowRank]
    keys: dict[str, Tensor]
    goals: dict[str, Tensor]


def pack_tensors(
    edits: Mapping[str, LowRank], keys: Mapping[str, Tensor], goals: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a file, by name, in float32.

    All factors are padded to one rank: stock loaders misread files with several.
    """
    rank = max(factors.rank for factors in edits.values())
    packed: dict[str, Tensor] = {}
    for name, factors in {**edits, **_attention_rows(edits)}.items():
        padded = factors.to(torch.float32).padded(rank)
        a, b = factor_names(name)
        # rows of ones and zeros, as long as the vocabulary, are the same in 16 bits
        packed[a] = padded.A.half() if is_embedding(name) else padded.A
        packed[b] = padded.B
    for name, value in keys.items():
        packed[KEY_PREFIX + name] = value.float().contiguous()
    for name, value in goals.items():
        packed[GOAL_PREFIX + name] = value.float().contiguous()
    return dict(sorted(packed.items()))


def factor_names(module: str) -> tuple[str, str]:
    """What PEFT calls the two factors of a module: those of an embedding have names of their own.

    In both a file holds A `(r, d_in)` and B `(d_out, r)`.
    """
    if is_embedding(module):
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def unpack_tensors(tensors: Mapping[str, Tensor], ranks: Mapping[str, Any]) -> StoredTensors:
    """The inverse of `pack_tensors`, given the rank of each edit.

    Raises:
        KeyError: A factor is missing.
        ValueError: The shapes of two factors do not belong together.
    """
    edits = {}
    for name, rank in ranks.items():
        a, b = factor_names(name)
        A = tensors[a].float()
        B = tensors[b]
        if type(rank) is not int or A.shape[0] != B.shape[1] or not 0 < rank <= A.shape[0]:
            raise ValueError(
                f"{name}: shapes {tuple(A.shape)} and {tuple(B.shape)} for rank {rank}"
            )
        edits[name] = LowRank(B[:, :rank].contiguous(), A[:rank].contiguous())
    return StoredTensors(edits, _under(KEY_PREFIX, tensors), _under(GOAL_PREFIX, tensors))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _attention_rows(edits: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """All-zero factors of one attention linear per encoder.

    Stock loaders refuse CLIP files without any.
    """
    rows = {}
    for component in dict.fromkeys(name.split(".")[0] for name in edits):
        for family in ENCODERS:
            known = (f"{component}.{family.file_blocks}.", f"{component}.{family.file_embeddings}")
            first = next((name for name in edits if name.startswith(known)), None)
            if first is None:
                continue
            # the other side of an MLP is wider
            width = min(edits[first].B.shape[0], edits[first].A.shape[1])
            row = stored_name(component, f"{family.file_blocks}.0.{family.padding_row}")
            nothing = torch.zeros(width, 0, dtype=torch.float32)
            rows[row] = LowRank(nothing, nothing.T)
    return {name: factors for name, factors in rows.items() if name not in edits}


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def serialize(tensors: Mapping[str, Tensor], header: dict[str, Any]) -> bytes:
    """The content of a file; the same input gives the same bytes."""
    return sort_metadata(save(dict(tensors), metadata=build_metadata(header)))


def read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        AdapterFormatError: Not a readable safetensors file.
        AdapterIntegrityError: Their digest is not `sha256`, or a value is not finite.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise AdapterFormatError(f"{path} is not a readable safetensors file: {error}") from error
    if digest_tensors(tensors) != sha256:
        raise AdapterIntegrityError(
            f"{path}: the tensors' sha256 is not the one in the header; fetch the file again"
        )
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AdapterIntegrityError(
                f"{path}: {name} has values that are not finite; fetch the file again"
            )
    return tensors


def write_atomically(
    target: Path, content: bytes, *, check: Callable[[Path], None] | None = None
) -> None:
    """Put a file in place in one step: a reader sees the old one or the new one, whole.

    Args:
        target: Where to put it.
        content: The whole file.
        check: Gets the written file before it is in place, and raises if it shall not be.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=target.parent, prefix=".erasure-", suffix=f".tmp{target.suffix}"
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(Path(temporary))
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
