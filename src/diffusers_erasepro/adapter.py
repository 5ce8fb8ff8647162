"""The adapter: spec, options, base fingerprint, factors, keys and report in one LoRA-shaped file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from .errors import AdapterFormatError, AdapterIntegrityError, UnsafeFileError
from .factors import LowRank
from .families import ENCODERS, file_name
from .options import Options
from .report import Report
from .spec import ErasureSpec

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
SCHEMA = 1
HEADER_LIMIT = 8 * 2**20
TENSOR_LIMIT = 4096
DTYPES_READ = ("F32", "F16", "BF16")
"""Of tensors; names as in the file."""
NOT_WEIGHTS = {b"version ": "a Git-LFS pointer", b"<!doctyp": "a web page", b"<html": "a web page"}
KEYS, GOAL = "erasepro.lora_keys.", "erasepro.lora_goal."
"""Prefixes of our own tensors; stock loaders ignore a tensor whose name holds "lora" and no component (diffusers 0.42)."""


@dataclass(frozen=True)
class ErasureAdapter:
    """A finished erasure: what to add to which layer, and all that is needed to make or check it again."""

    spec: ErasureSpec
    options: Options
    base: Mapping[str, Mapping[str, str]]
    """Component -> dtype -> fingerprint of the weights it was made for."""
    edits: Mapping[str, LowRank]
    """Stored name ("text_encoder.text_model...mlp.fc2") -> factors."""
    keys: Mapping[str, Tensor]
    """Stored name -> `(n, d_in)` inputs at the exact positions, in the edited stream; all K/V linears share "ENCODER.states"."""
    goals: Mapping[str, Tensor]
    """Encoder -> `(n, d)` states the exact positions shall have."""
    report: Report
    source: str = field(default="", compare=False)
    """Where it was loaded from, for messages."""

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the pipeline components it edits."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.edits))

    @property
    def goal_parts(self) -> tuple[str, ...]:
        """Names of the text encoders whose states have goals."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.goals))

    def of(self, component: str) -> dict[str, LowRank]:
        """The edits of one component, by stored name without the component."""
        return {k.partition(".")[2]: v for k, v in self.edits.items() if k.split(".")[0] == component}

    @cached_property
    def digest(self) -> str:
        """Sha256 of the tensors; two adapters with the same digest are the same edit."""
        return tensor_digest(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """What the file holds: factors of one rank everywhere (stock loaders misread mixed ones), keys, goals."""
        rank = max(f.rank for f in self.edits.values())
        found: dict[str, Tensor] = {}
        for name, factors in {**self.edits, **_attention_rows(self.edits)}.items():
            even = factors.to(torch.float32).padded(rank)
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = even.A, even.B
        found |= {KEYS + k: v.float().contiguous() for k, v in self.keys.items()}
        found |= {GOAL + k: v.float().contiguous() for k, v in self.goals.items()}
        return dict(sorted(found.items()))

    def to_bytes(self) -> bytes:
        """The file's content; the same adapter gives the same bytes."""
        header: dict[str, Any] = {
            "schema": SCHEMA,
            "spec": self.spec.to_dict(),
            "options": self.options.to_dict(),
            "base": {k: dict(v) for k, v in self.base.items()},
            "ranks": {k: f.rank for k, f in self.edits.items()},
            "report": self.report.to_dict(),
            "sha256": self.digest,
        }
        header["seal"] = seal(header)
        # One metadata key only: safetensors 0.8 writes several in an order that changes from run to run.
        return to_bytes(self.tensors(), metadata={"erasepro": json.dumps(header, sort_keys=True)})

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, weight_name: str = WEIGHT_NAME) -> Path:
        """Write the adapter into a folder; the old file stays whole until the new one is.

        Returns:
            The path of the file.

        Raises:
            UnsafeFileError: `weight_name` is not a plain `.safetensors` file name.
        """
        folder = Path(save_directory)
        target = folder / checked_name(weight_name)
        write_whole(target, self.to_bytes())
        return target

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, weight_name: str | None = None,
        subfolder: str | None = None, revision: str | None = None, token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False,
    ) -> ErasureAdapter:  # fmt: skip
        """Read an adapter from a file, a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: File, folder, or Hub id "owner/name".
            weight_name: File name inside the folder; needed if there are several.
            subfolder: Folder inside the folder or repository.
            revision, token, cache_dir, local_files_only: As in `huggingface_hub.hf_hub_download`.

        Raises:
            AdapterFormatError: Not an erasure adapter, or one of a later version.
            AdapterIntegrityError: The tensors are not those that were written.
            UnsafeFileError: A pickle, or a path that leads outside.
        """
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        return read(find(pretrained_model_name_or_path, weight_name, subfolder, hub))

    def __repr__(self) -> str:
        what = ", ".join(f"{c.target!r} -> {c.anchor!r}" for c in self.spec.concepts)
        return f"ErasureAdapter({what}; {len(self.edits)} layers, listed residual {self.report.listed_residual:.1e})"


def _attention_rows(edits: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """All-zero rows on one attention linear per encoder: stock loaders refuse CLIP files without any."""
    rows = {}
    for component in dict.fromkeys(name.split(".")[0] for name in edits):
        for family in ENCODERS:
            first = next((n for n in edits if n.startswith(f"{component}.{family.file_blocks}.")), None)
            if first:
                width = edits[first].B.shape[0]
                row = file_name(component, f"{family.file_blocks}.0.{family.padding_row}")
                rows[row] = LowRank(torch.zeros(width, 0), torch.zeros(0, width))
    return {k: v for k, v in rows.items() if k not in edits}


def write_whole(target: Path, content: bytes) -> None:
    """Put a file in place in one step: whoever looks sees the old one or the new one, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".erasure-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ reading


def checked_name(weight_name: str) -> str:
    """`weight_name` if it is a plain safetensors file name."""
    if not re.fullmatch(r"[\w][\w .-]*\.safetensors", weight_name):
        raise UnsafeFileError(f"weight_name {weight_name!r} must be a plain file name ending in .safetensors, without folders")
    return weight_name


def find(where: str | os.PathLike[str], weight_name: str | None, subfolder: str | None, hub: dict[str, Any]) -> Path:
    """The adapter file named by a path or a Hub id."""
    path = Path(where)
    if weight_name is not None:
        checked_name(weight_name)
    if subfolder and not (path / subfolder).resolve().is_relative_to(path.resolve()):
        raise UnsafeFileError(f"subfolder {subfolder!r} leads out of {where}; give a folder inside it")
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path / (subfolder or ""), weight_name)
    if path.is_absolute() or str(where).startswith((".", "~")) or str(where).count("/") != 1:
        raise AdapterFormatError(f"no file or folder at {where}; give a path that exists or a Hub id 'owner/name'")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(where), weight_name or WEIGHT_NAME, subfolder=subfolder, **hub))


def _in_folder(folder: Path, weight_name: str | None) -> Path:
    if weight_name:
        candidates = [folder / weight_name]
    elif (folder / WEIGHT_NAME).is_file():
        candidates = [folder / WEIGHT_NAME]
    else:
        candidates = sorted(folder.glob("*.safetensors"))
    if len(candidates) > 1:
        raise AdapterFormatError(f"{folder} holds {[c.name for c in candidates]}; say which by weight_name=")
    if not candidates or not candidates[0].is_file():
        raise AdapterFormatError(f"no {weight_name or 'safetensors file'} in {folder}")
    return candidates[0]


def seal(header: Mapping[str, Any]) -> str:
    """Sha256 of the header without its seal: a flipped bit in it is found, as one in a tensor is by `tensor_digest`."""
    rest = {k: v for k, v in header.items() if k != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> ErasureAdapter:
    """Read and check one adapter file."""
    if path.suffix != ".safetensors":
        raise UnsafeFileError(f"{path} is not a safetensors file; pickles are never loaded")
    header, tensors = _open(path)
    if not isinstance(header, dict):
        raise AdapterFormatError(f"{path}: its 'erasepro' header is a {type(header).__name__}, not a table")
    if header.get("schema") != SCHEMA:
        raise AdapterFormatError(f"{path} has schema {header.get('schema')!r}, this version reads {SCHEMA}; upgrade the package")
    if seal(header) != header.get("seal"):
        raise AdapterIntegrityError(f"{path}: the header's seal is not that of its content; fetch the file again")
    if tensor_digest(tensors) != header.get("sha256"):
        raise AdapterIntegrityError(f"{path}: the tensors' sha256 is not the one in the header; fetch the file again")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AdapterIntegrityError(f"{path}: {name} has values that are not finite; fetch the file again")
    try:
        return _build(header, tensors, str(path))
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise AdapterFormatError(f"{path}: the header does not describe its tensors ({error})") from error


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Our header and the tensors; what the file says of them is checked before any of them is read."""
    try:
        _check_table(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _json((file.metadata() or {})["erasepro"]), tensors
    except (SafetensorError, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise AdapterFormatError(f"{path} is not a readable safetensors file: {error}") from error


def _check_table(path: Path) -> None:
    """The safetensors header: not too long, no name twice, only tensors of the kinds we write.

    A header of a million tensors takes safetensors 18 s and 1.3 GB, so its length is looked at first.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if what := next((w for mark, w in NOT_WEIGHTS.items() if start.lower().startswith(mark)), None):
            raise AdapterFormatError(f"{path} is {what}, not weights; download the file itself")
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size > HEADER_LIMIT:
            raise AdapterFormatError(
                f"{path} is not a readable safetensors file: a header of {size} bytes, at most {HEADER_LIMIT} are read"
            )
        text = file.read(size)
    if (count := text.count(b'"data_offsets"')) > TENSOR_LIMIT:  # counted in the bytes: parsing so many takes seconds
        raise AdapterFormatError(f"{path} holds {count} tensors, at most {TENSOR_LIMIT} are read")
    table = _json(text)
    if not isinstance(table, dict) or not isinstance(table.get("__metadata__", {}), dict):
        raise AdapterFormatError(f"{path} is not a readable safetensors file: its header is no table")
    if "erasepro" not in table.pop("__metadata__", {}):
        raise AdapterFormatError(f"{path} is no erasure adapter: its header has no 'erasepro' entry (a plain LoRA?)")
    for name, entry in table.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if shape is None or entry.get("dtype") not in DTYPES_READ or len(shape) != 2:
            raise AdapterFormatError(f"{path}: {name} is not a matrix of {', '.join(DTYPES_READ)}, as all of ours are")


def _json(text: str | bytes) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table; the parsers of other programs disagree on which of two equal names counts."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise AdapterFormatError("a header names something twice; fetch the file again from its author")
    return table


def _build(header: dict[str, Any], tensors: dict[str, Tensor], source: str) -> ErasureAdapter:
    edits = {}
    for name, rank in header["ranks"].items():
        A, B = tensors.pop(f"{name}.lora_A.weight"), tensors.pop(f"{name}.lora_B.weight")
        if type(rank) is not int or A.shape[0] != B.shape[1] or not 0 < rank <= A.shape[0]:
            raise ValueError(f"{name}: shapes {tuple(A.shape)} and {tuple(B.shape)} for rank {rank}")
        edits[name] = LowRank(B[:, :rank].contiguous(), A[:rank].contiguous())
    reported = {layer["name"] for layer in header["report"]["layers"]}
    if not edits or (reported and reported != set(edits)):
        raise ValueError(f"layers {sorted(reported ^ set(edits))[:3]} are reported or stored, but not both")
    base = {str(part): {str(k): str(v) for k, v in prints.items()} for part, prints in header["base"].items()}
    names = {f.name for f in fields(Options)}
    adapter = ErasureAdapter(
        spec=ErasureSpec.from_dict(header["spec"]),
        options=Options(**{k: v for k, v in header["options"].items() if k in names}),
        base=base,
        edits=edits,
        keys={k.removeprefix(KEYS): v for k, v in tensors.items() if k.startswith(KEYS)},
        goals={k.removeprefix(GOAL): v for k, v in tensors.items() if k.startswith(GOAL)},
        report=Report.from_dict(header["report"]),
        source=source,
    )
    if unknown := set(tensors) - set(adapter.tensors()):
        raise ValueError(f"unknown tensors {sorted(unknown)[:3]}")
    if unknown := set(adapter.components) - set(base):
        raise ValueError(f"no base is named for {sorted(unknown)}")
    return adapter
