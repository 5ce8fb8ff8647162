"""Statistics of a base on disk: another process does not compute them once more.

One safetensors file per tensor, in the folder that the Hub's client has for what libraries keep.
The environment variable `ERASEPRO_CACHE` names another folder, or says "off".
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
import transformers
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "1"
"""Of the files, and of how what they hold is computed: another one is another key."""
FOLDER = "ERASEPRO_CACHE"
"""Environment variable: a folder, or "off"."""
LIMIT = "ERASEPRO_CACHE_BYTES"
"""Environment variable: the most that the folder may take."""
BYTES = 4 << 30
"""Where that is not given. T5-XXL's matrices take 840 MB each, CLIP-L's 75 MB."""
ABANDONED = 86_400
"""Age in seconds from which a file half written is taken for one that nobody writes any more."""
PREFIX = "statistics-"
"""Of the files' names: nothing else in the folder is ever touched."""
TENSOR = "moments"


def cache_folder() -> Path | None:
    """Where statistics are kept; None where that is switched off, or no folder can be made."""
    given = os.environ.get(FOLDER, "")
    if given.lower() in ("off", "0", "none"):
        return None
    try:
        if not given:
            return cached_assets_path("diffusers-erasepro", "statistics")
        folder = Path(given).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError):
        return None
    return folder


def read_cached(content: str, names: Iterable[str]) -> dict[str, Tensor]:
    """What the folder has of these names; a file that is damaged counts as missing.

    Args:
        content: Key of what the tensors were computed from.
        names: Of tensors.
    """
    folder = cache_folder()
    if folder is None:
        return {}
    found = {}
    for name in names:
        file = folder / _file_name(content, name)
        value = _read_whole(file)
        if value is not None:
            found[name] = value
            with suppress(OSError):
                os.utime(file)  # used now: what was not is evicted first
    return found


def write_cached(content: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep tensors, and evict the oldest files beyond the limit.

    Without a word where the folder cannot be written, or one tensor is larger than all may be.
    """
    folder = cache_folder()
    if folder is None:
        return
    limit = _limit()
    for name, value in tensors.items():
        if value.nbytes <= limit:
            _write_whole(folder / _file_name(content, name), value)
    _evict(folder, limit)


def _file_name(content: str, name: str) -> str:
    """What is the same to the last bit has one name.

    Rounding depends on the libraries, on the device and on how many threads share a sum.
    """
    how = (FORMAT, torch.__version__, transformers.__version__, torch.get_num_threads())
    key = repr((how, torch.get_float32_matmul_precision(), content, name))
    return f"{PREFIX}{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def _limit() -> int:
    with suppress(ValueError):
        return int(os.environ.get(LIMIT, BYTES))
    return BYTES


def _read_whole(file: Path) -> Tensor | None:
    """The tensor of a file that is there and whole."""
    try:
        with safe_open(file, framework="pt") as stored:
            value: Tensor = stored.get_tensor(TENSOR).clone()
            digest = (stored.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return value if digest == _digest(value) else None


def _write_whole(file: Path, value: Tensor) -> None:
    """Under a name of its own first: a reader, or a second writer, never meets half a file."""
    value = value.contiguous()
    temporary = None
    try:
        number, temporary = tempfile.mkstemp(".part", PREFIX, file.parent)
        os.close(number)
        save_file({TENSOR: value}, temporary, metadata={"sha256": _digest(value)})
        os.replace(temporary, file)
    except (OSError, SafetensorError):
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.numpy().data).hexdigest()


def _evict(folder: Path, limit: int) -> None:
    """Remove what was used longest ago beyond the limit, and what nobody finished writing."""
    files: list[tuple[float, int, Path]] = []
    for file in sorted(folder.glob(f"{PREFIX}*")):
        with suppress(OSError):  # another process may evict as well
            found = file.stat()
            if file.suffix == ".part" and time.time() - found.st_mtime > ABANDONED:
                file.unlink()
            elif file.suffix == ".safetensors":
                files.append((found.st_mtime, found.st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= limit:
            break
        with suppress(OSError):
            file.unlink()
        total -= size
