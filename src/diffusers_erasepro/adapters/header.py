"""The header of an adapter file, read and written without torch: all but the tensors."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..config.plan import describe_alignment
from ..errors import AdapterFormatError, AdapterIntegrityError, UnsafeFileError

SCHEMA = 2
"""2: "plan" beside "options", which lost "variant" and "each"."""
HEADER_LIMIT = 8 * 2**20
PACKED_FROM = 2**18
"""Length of JSON from which on an entry of our header is stored compressed."""
UNPACKED_LIMIT = 32 * 2**20
"""Bytes that a compressed entry may have once it is unpacked."""
PACKED = "zlib"
ROOM_FOR_TENSORS = 2**20
"""Bytes of the limit that stay free for the table of tensors."""
SHORTEN = (
    "give fewer or shorter captions in `preserve` (some thousands give the same metric), or erase "
    "fewer concepts at once"
)
TENSOR_LIMIT = 4096
DTYPES_READ = ("F32", "F16", "BF16")
"""Of tensors; names as in the file."""
ENTRIES = {"schema", "spec", "options", "plan", "base", "ranks", "report", "sha256", "seal"}
"""Of our header. Files of before the seal have none."""
CLIP_BLOCK = re.compile(r"(text_encoder(?:_\d+)?)\.text_model\.encoder\.layers\.(\d+)\.")
"""Component and number of the block, in a stored name."""
NOT_WEIGHTS = {b"version ": "a Git-LFS pointer", b"<!doctyp": "a web page", b"<html": "a web page"}


def read_header(path: Path) -> dict[str, Any]:
    """The `erasepro` entry of the file's metadata; the tensors are not read.

    Raises:
        UnsafeFileError: Not a safetensors file by name.
        AdapterFormatError: Not an erasure adapter, or one of a later version.
        AdapterIntegrityError: The header is not what was written.
    """
    if path.suffix != ".safetensors":
        raise UnsafeFileError(f"{path} is not a safetensors file; pickles are never loaded")
    header = unpack_entries(path, _parse(path))
    if not isinstance(header, dict):
        raise AdapterFormatError(
            f"{path}: its 'erasepro' header is a {type(header).__name__}, not a table"
        )
    if header.get("schema") != SCHEMA:
        raise AdapterFormatError(
            f"{path} has schema {header.get('schema')!r}, this version reads {SCHEMA}; "
            f"{_cure(header)}"
        )
    if unknown := set(header) - ENTRIES:
        raise AdapterFormatError(
            f"{path}: its header has unknown entries {sorted(unknown)[:3]}; fetch the file again"
        )
    if header.get("seal", seal(header)) != seal(header):
        raise AdapterIntegrityError(
            f"{path}: the header's seal is not that of its content; fetch the file again"
        )
    return header


def pack_entries(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header with its long entries compressed, as they are stored: a list of captions, say.

    Raises:
        AdapterFormatError: An entry is too long to be read back.
    """
    packed = {}
    for name, entry in header.items():
        text = json.dumps(entry, sort_keys=True).encode()
        packed[name] = entry
        if len(text) > UNPACKED_LIMIT:
            raise AdapterFormatError(
                f"the {name} of the adapter takes {len(text)} bytes, at most {UNPACKED_LIMIT} can "
                f"be read back; {SHORTEN}"
            )
        if len(text) >= PACKED_FROM:
            packed[name] = {PACKED: base64.b64encode(zlib.compress(text)).decode()}
    return packed


def unpack_entries(path: Path, header: Any) -> Any:
    """The inverse of `pack_entries`; `path` is named where it fails.

    Raises:
        AdapterIntegrityError: An entry cannot be unpacked, or is larger than it may be.
    """
    if not isinstance(header, dict):
        return header
    unpacked = {}
    for name, entry in header.items():
        unpacked[name] = entry
        if isinstance(entry, dict) and [*entry] == [PACKED] and isinstance(entry[PACKED], str):
            text = _decompress(path, name, entry[PACKED])
            try:
                unpacked[name] = _parse_json(text)
            except (ValueError, RecursionError) as error:
                raise AdapterIntegrityError(
                    f"{path}: the {name} in its header is no JSON ({error}); fetch the file again"
                ) from error
    return unpacked


def _decompress(path: Path, name: str, stored: str) -> bytes:
    """Never more than `UNPACKED_LIMIT` is unpacked, whatever the file says."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(base64.b64decode(stored, validate=True), UNPACKED_LIMIT)
    except (ValueError, zlib.error) as error:
        raise AdapterIntegrityError(
            f"{path}: the {name} in its header cannot be unpacked ({error}); fetch the file again"
        ) from error
    if not unpacker.eof:
        raise AdapterIntegrityError(
            f"{path}: the {name} in its header is cut off, or unpacks to more than "
            f"{UNPACKED_LIMIT} bytes; fetch the file again"
        )
    return text


def refuse_unreadable(header: Mapping[str, Any]) -> None:
    """Refuse what could be written and not read back, before anything is computed for it.

    Args:
        header: The header, or some of its entries.

    Raises:
        AdapterFormatError: It is too long, though compressed.
    """
    stored = json.dumps(json.dumps(pack_entries(header), sort_keys=True))
    if len(stored) > HEADER_LIMIT - ROOM_FOR_TENSORS:
        raise AdapterFormatError(
            f"the adapter's {' and '.join(header)}: {len(stored)} bytes when compressed, at most "
            f"{HEADER_LIMIT - ROOM_FOR_TENSORS} can be read back; {SHORTEN}"
        )


def _cure(header: Mapping[str, Any]) -> str:
    """What to do about a file of another schema."""
    if not isinstance(header.get("schema"), int) or header["schema"] >= SCHEMA:
        return "upgrade the package"
    concepts = header.get("spec", {}).get("concepts", [])
    what = "--spec SPEC.toml"
    if len(concepts) == 1:
        target = concepts[0].get("target", "")
        anchor = concepts[0].get("anchor", "")
        what = f"--target {target!r} --anchor {anchor!r}"
    return f"make it again: erasepro erase MODEL {what} -o FOLDER"


def seal(header: Mapping[str, Any]) -> str:
    """Sha256 of the header without its seal.

    It finds a flipped bit in the header, as the tensors' sha256 finds one in a tensor.
    """
    rest = {k: v for k, v in header.items() if k != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Path relative to `folder` -> header, of every adapter file below it.

    Other files are passed over.
    """
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        if path.name.startswith("."):
            continue
        with suppress(AdapterFormatError):
            found[str(path.relative_to(folder))] = read_header(path)
    return found


def _parse(path: Path) -> Any:
    """Our entry; what the file says of its tensors is checked before safetensors reads any."""
    try:
        stored = _read_entry(path)
        with safe_open(path, framework="np"):
            return _parse_json(stored)
    except (
        SafetensorError,
        UnicodeDecodeError,
        RecursionError,
        TypeError,
        json.JSONDecodeError,
    ) as error:
        raise AdapterFormatError(f"{path} is not a readable safetensors file: {error}") from error


def _read_entry(path: Path) -> str:
    """The `erasepro` entry of a safetensors header, once the header has passed all checks.

    It is not too long, has no name twice, and only our kinds of tensors. A header of a million
    tensors takes safetensors 18 s and 1.3 GB, so its length is checked first.
    """
    with path.open("rb") as file:
        start = file.read(8)
        for mark, what in NOT_WEIGHTS.items():
            if start.lower().startswith(mark):
                raise AdapterFormatError(f"{path} is {what}, not weights; download the file itself")
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size > HEADER_LIMIT:
            raise AdapterFormatError(
                f"{path} is not a readable safetensors file: a header of {size} bytes, "
                f"at most {HEADER_LIMIT} are read"
            )
        text = file.read(size)
    count = text.count(b'"data_offsets"')  # counted in the bytes: parsing so many takes seconds
    if count > TENSOR_LIMIT:
        raise AdapterFormatError(f"{path} holds {count} tensors, at most {TENSOR_LIMIT} are read")
    table = _parse_json(text)
    if not isinstance(table, dict) or not isinstance(table.get("__metadata__", {}), dict):
        raise AdapterFormatError(
            f"{path} is not a readable safetensors file: its header is no table"
        )
    stored = table.pop("__metadata__", {}).get("erasepro")
    if stored is None:
        raise AdapterFormatError(
            f"{path} is no erasure adapter: its header has no 'erasepro' entry; "
            "for a plain LoRA see `erasepro import`"
        )
    for name, entry in table.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if shape is None or entry.get("dtype") not in DTYPES_READ or len(shape) != 2:
            raise AdapterFormatError(
                f"{path}: {name} is not a matrix of {', '.join(DTYPES_READ)}, as all of ours are"
            )
    return stored


def _parse_json(text: str | bytes) -> Any:
    return json.loads(text, object_pairs_hook=_unique_table)


def _unique_table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table; the parsers of other programs disagree on which of two equal names counts."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise AdapterFormatError(
            "a header names something twice; fetch the file again from its author"
        )
    return table


# --- in words


def describe(header: Mapping[str, Any]) -> str:
    """What is erased, in one line; the title of the adapter."""
    concepts = header["spec"]["concepts"]
    names = [f"{c['target']} -> {c['anchor'] or 'nothing'}" for c in concepts[:3]]
    more = f" and {len(concepts) - 3} more" if len(concepts) > 3 else ""
    return f"Erasure: {', '.join(names)}{more}"


def format_measure(value: float | None, form: str) -> str:
    """A number of a report in this format; what was not measured is said so."""
    return "not measured" if value is None or not isfinite(value) else format(value, form)


KINDS_OF_POSITION = {
    "name": "at the name",
    "other": "at the other words",
    "ends": "at the ends of the prompt",
    "padding": "at the padding",
}
"""How sentences call the kinds of position."""


def describe_selectivity(found: Mapping[str, Any]) -> list[str]:
    """What is left of the concepts and what else moves, a sentence each.

    Args:
        found: A `Selectivity` as plain data.
    """
    lines = []
    if left := describe_left(found["left"]):
        lines.append(
            "Share of the gap between name and anchor that is left in phrasings that no template "
            f"lists (1 before the erasure, 0 is none): {left}."
        )
    return lines + describe_moved(found)


def describe_moved(found: Mapping[str, Any]) -> list[str]:
    """How far near misses and other captions move, a sentence each.

    Args:
        found: A `Selectivity` as plain data.
    """
    lines = []
    if isfinite(found["near"]):
        lines.append(
            f"Near misses, which share a word or a meaning with the name, move by "
            f"{found['near']:.4f} on average, {found['near_worst']:.3f} at most."
        )
    captions = found["captions"]
    if captions:
        bound = "" if found["fires"] else f": at 95 %, at most {min(1.0, 3 / captions):.1%} do"
        lines.append(
            f"Other captions move by {found['drift']:.4f} on average; in {found['fires']} of "
            f"{captions} a token moves by more than a tenth{bound}."
        )
    return lines


def describe_left(left: Mapping[str, float]) -> str:
    """Shares of the gap by kind of position, in words; empty where none was measured."""
    parts = []
    for kind, words in KINDS_OF_POSITION.items():
        if kind in left:
            parts.append(f"{left[kind]:.3f} {words}")
    return ", ".join(parts)


def list_selectivity(header: Mapping[str, Any]) -> list[str]:
    """`describe_selectivity` of the report; empty where that was not measured."""
    found = header["report"].get("selectivity")
    return describe_selectivity(found) if found else []


def list_promises(header: Mapping[str, Any]) -> list[str]:
    """What the adapter's maker measured and `verify_erasure` measures again."""
    report = header["report"]
    if not isfinite(report["listed_residual"]):
        return [
            "Off is the base, bit for bit. It was imported from another tool: nothing was measured."
        ]
    return [
        f"At {_describe_positions(header)} of the listed prompts, what the denoiser reads is that "
        f"of their anchors to {report['listed_residual']:.1e} of its size (0 is no difference).",
        "`verify_erasure()` measures that on the live modules and fails if it does not hold.",
        "Off is the base, bit for bit; several erasures are solved together, so the order does "
        "not matter.",
    ]


def _describe_positions(header: Mapping[str, Any]) -> str:
    """Where the listed prompts meet their anchors."""
    names = dict.fromkeys(recipe["alignment"] for recipe in header["plan"].values())
    return " or ".join(describe_alignment(name) for name in names)


def list_limits(header: Mapping[str, Any]) -> list[str]:
    """What a user must know before relying on it."""
    report = header["report"]
    components = list_components(header)
    gap = "how much is left there was not measured"
    if isfinite(report["held_out_mean"]):
        far = f"{report['held_out_mean']:.2f} of its size"
        gap = f"what the denoiser reads there is {far} away from the anchors', on average"
    drift = "How far other captions move was not measured."
    if isfinite(report["drift"]):
        drift = (
            f"The states of other captions move by {report['drift']:.3f} of their size on average."
        )
    limits = [
        f"Phrasings that no template lists are met less exactly: {gap}.",
        drift,
        f"It edits {' and '.join(components)} of the base it was made for, and refuses others.",
        "It suppresses, it does not delete: whoever holds the files can unload it, or train the "
        "concept back. Do not use it as the only control for illegal content.",
    ]
    if all(name.startswith("text_encoder") for name in components):
        limits.append(
            "`prompt_embeds` made elsewhere, input images and adversarial embeddings go around it."
        )
    return limits + list_clip_skip_limits(header)


def list_clip_skip_limits(header: Mapping[str, Any]) -> list[str]:
    """`describe_clip_skip` of the adapter that `header` describes."""
    encoders = header["report"].get("encoders", ())
    readings = {encoder["name"]: encoder["readings"] for encoder in encoders}
    options = header["options"]
    clip_skip = options.get("settings", options).get("clip_skip", 0)
    return describe_clip_skip(header["ranks"], readings, clip_skip)


def describe_clip_skip(
    layers: Iterable[str], readings: Mapping[str, Sequence[str]], clip_skip: int
) -> list[str]:
    """What is lost in a tool that reads CLIP at another block than the erasure is made for.

    Args:
        layers: Stored names of what is edited.
        readings: What is read of each text encoder, as in `EncoderReport`.
        clip_skip: What the erasure is made for.

    Returns:
        One sentence or two; none, where no CLIP is read position by position.
    """
    deepest: dict[str, int] = {}
    for name in layers:
        if found := CLIP_BLOCK.match(name):
            deepest[found[1]] = max(deepest.get(found[1], 0), int(found[2]))
    in_unet = any(name.startswith("unet.") for name in layers)
    states = {}
    for encoder, names in readings.items():
        inner = [name for name in names if "hidden_state" in name]
        if inner and (encoder in deepest or in_unet):
            states[encoder] = inner[0]
    if not states:
        return []
    index = re.search(r"\[-(\d+)\]", next(iter(states.values())))
    count = index[1] if index else "1"
    limits = [
        f"It is made for clip skip {count} as A1111 and ComfyUI count (`clip_skip={clip_skip}` in "
        "diffusers); at another the listed prompts are not met as measured."
    ]
    late = [encoder for encoder in states if deepest.get(encoder)]
    if late:
        limits.append(
            f"The edits in the last blocks of {' and '.join(late)} do not run in a tool that stops "
            "at an earlier block, and what they erase comes back there: for a higher clip skip "
            f"make it with `erase(..., clip_skip={clip_skip + 1})` or more."
        )
    return limits


def list_components(header: Mapping[str, Any]) -> list[str]:
    """Pipeline components that the adapter edits."""
    return list(dict.fromkeys(name.split(".")[0] for name in header["ranks"]))


# --- writing


def build_metadata(header: dict[str, Any]) -> dict[str, str]:
    """The file's metadata: our entry, and the `modelspec.*` keys that model managers show."""
    return {
        "format": "pt",
        "erasepro": json.dumps(pack_entries(header), sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        "modelspec.title": describe(header),
        "modelspec.description": "A concept erasure of diffusers-erasepro; use it at strength 1.",
        "modelspec.tags": "concept-erasure",
    }


def sort_metadata(content: bytes) -> bytes:
    """The same file with its metadata in order.

    safetensors 0.8 writes them in an order that changes from run to run.
    """
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format keeps the data aligned to 8 bytes
    return len(head).to_bytes(8, "little") + head + content[8 + size :]
