"""What an adapter file says about itself, read without torch: spec, options, base, ranks, report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .errors import AdapterFormatError, UnsafeFileError

SCHEMA = 1
HEADER_LIMIT = 8 * 2**20
NOT_WEIGHTS = {b"version ": "a Git-LFS pointer", b"<!doctyp": "a web page", b"<html": "a web page"}


def read_header(path: Path) -> dict[str, Any]:
    """The `erasepro` entry of the file's metadata; the tensors are not read.

    Raises:
        UnsafeFileError: Not a safetensors file by name.
        AdapterFormatError: Not an erasure adapter, or one of a later version.
    """
    if path.suffix != ".safetensors":
        raise UnsafeFileError(f"{path} is not a safetensors file; pickles are never loaded")
    header = _parsed(path)
    if not isinstance(header, dict):
        raise AdapterFormatError(f"{path}: its 'erasepro' header is a {type(header).__name__}, not a table")
    if header.get("schema") != SCHEMA:
        raise AdapterFormatError(f"{path} has schema {header.get('schema')!r}, this version reads {SCHEMA}; upgrade the package")
    return header


def headers_below(folder: Path) -> dict[str, dict[str, Any]]:
    """Path relative to `folder` -> header, of every adapter file below it; other files are passed over."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with suppress(AdapterFormatError):
            found[str(path.relative_to(folder))] = read_header(path)
    return found


def _parsed(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(8)
    if what := next((w for mark, w in NOT_WEIGHTS.items() if start.lower().startswith(mark)), None):
        raise AdapterFormatError(f"{path} is {what}, not weights; download the file itself")
    if len(start) == 8 and int.from_bytes(start, "little") > HEADER_LIMIT:
        raise AdapterFormatError(f"{path}: a header of {int.from_bytes(start, 'little')} bytes, at most {HEADER_LIMIT} are read")
    try:
        with safe_open(path, framework="np") as file:
            stored = (file.metadata() or {}).get("erasepro")
        if stored is None:
            raise AdapterFormatError(
                f"{path} is no erasure adapter: its header has no 'erasepro' entry; for a plain LoRA see `erasepro import`"
            )
        return json.loads(stored)
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise AdapterFormatError(f"{path} is not a readable safetensors file: {error}") from error


# ------------------------------------------------------------------------------------------------ in words


def title(header: Mapping[str, Any]) -> str:
    """What is erased, in one line."""
    concepts = header["spec"]["concepts"]
    names = [f"{c['target']} -> {c['anchor'] or 'nothing'}" for c in concepts[:3]]
    return "Erasure: " + ", ".join(names) + (f" and {len(concepts) - 3} more" if len(concepts) > 3 else "")


def promises(header: Mapping[str, Any]) -> list[str]:
    """What the adapter's maker measured and `verify_erasure` measures again."""
    report = header["report"]
    if not isfinite(report["listed_residual"]):
        return ["Off is the base, bit for bit. It was imported from another tool: nothing was measured."]
    return [
        f"The exact prompts meet their anchors with a residual of {report['listed_residual']:.1e} at what the denoiser reads.",
        "`verify_erasure()` measures that on the live modules and fails if it does not hold.",
        "Off is the base, bit for bit; several erasures are solved together, so the order does not matter.",
    ]


def limits(header: Mapping[str, Any]) -> list[str]:
    """What a user must know before relying on it."""
    report, parts = header["report"], components(header)
    unseen = report["held_out_mean"]
    gap = f"on average {unseen:.2f} of the way is left there" if isfinite(unseen) else "how much is left there was not measured"
    return [
        f"Phrasings that no template lists are met less exactly: {gap}.",
        f"Other captions move by {report['drift']:.3f} on average (relative, at what the denoiser reads).",
        f"It edits {' and '.join(parts)} of the base it was made for, and refuses others.",
        "It suppresses; whoever holds the files can unload it. Do not use it as the only control for illegal content.",
        *(
            ["`prompt_embeds` made elsewhere, input images and adversarial embeddings go around it."]
            if all(p.startswith("text_encoder") for p in parts)
            else []
        ),
    ]


def components(header: Mapping[str, Any]) -> list[str]:
    """Pipeline components that the adapter edits."""
    return list(dict.fromkeys(name.split(".")[0] for name in header["ranks"]))


# ------------------------------------------------------------------------------------------------ writing


def metadata(header: dict[str, Any]) -> dict[str, str]:
    """The file's metadata: our entry, and the `modelspec.*` keys that model managers show."""
    return {
        "format": "pt",
        "erasepro": json.dumps(header, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title(header),
        "modelspec.description": "A concept erasure of diffusers-erasepro; use it at strength 1.",
        "modelspec.tags": "concept-erasure",
    }


def sorted_metadata(content: bytes) -> bytes:
    """The same file with its metadata in order: safetensors 0.8 writes them in one that changes from run to run."""
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format keeps the data aligned to 8 bytes
    return len(head).to_bytes(8, "little") + head + content[8 + size :]
