"""`erasures.lock`: a set of adapters pinned by commit and sha256."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Unpack

from ..config.spec import toml_value
from ..config.text_files import read_text_file, write_text_file
from ..errors import AdapterFormatError, AdapterIntegrityError, ConceptSpecError
from .hub import FileOptions, Origin, find
from .naming import check_adapter_name

SUFFIX = ".lock"


@dataclass(frozen=True)
class Pin:
    """One adapter of the set."""

    source: str
    """Hub id, or a path relative to the lock's folder."""
    sha256: str
    """Of the whole file."""
    revision: str = ""
    """Full commit; empty for local files."""
    weight_name: str = ""
    subfolder: str = ""


def make_pin(origin: Origin, folder: Path) -> Pin:
    """The pin of a file that was found, for a lock in `folder`."""
    if origin.repo:
        return Pin(origin.repo, origin.sha256, origin.commit, origin.path.name, origin.subfolder)
    return Pin(os.path.relpath(origin.path, folder), origin.sha256)


def write_lock(path: Path, pins: Mapping[str, Pin]) -> None:
    """Write the set, by adapter name.

    Raises:
        ConceptSpecError: No erasure may be called so; nothing was written.
    """
    for name in pins:
        check_adapter_name(name)
    lines = ["# Made by erasepro; `pipe.load_erasure_adapter` loads just these files.", ""]
    for name, pin in sorted(pins.items()):
        lines.append(f"[{toml_value(name)}]")
        lines += [f"{key} = {toml_value(value)}" for key, value in asdict(pin).items() if value]
        lines.append("")
    write_text_file(path, "\n".join(lines))


def add_pin(path: Path, name: str, origin: Origin) -> None:
    """Pin a file in a lock, which is made if it is not there; the other pins stay.

    Raises:
        ConceptSpecError: No erasure may be called so, or another one is.
    """
    pins = read_lock(path) if path.exists() else {}
    pin = make_pin(origin, path.parent)
    before = pins.get(name, pin)
    if (before.source, before.subfolder) != (pin.source, pin.subfolder):
        raise ConceptSpecError(
            f"{path} pins {before.source!r} as {name!r} already, so {pin.source!r} cannot be "
            "called so too; give another --name, or delete that table from the lock"
        )
    write_lock(path, pins | {name: pin})


def read_lock(path: Path) -> dict[str, Pin]:
    """The set, by adapter name.

    Raises:
        AdapterFormatError: Not a lock file, or a name in it that no erasure may have.
    """
    try:
        text = read_text_file(path, error=AdapterFormatError)
        pins = {name: Pin(**row) for name, row in tomllib.loads(text).items()}
    except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
        raise AdapterFormatError(
            f"{path} is no lock file: {error}; write one with `erasepro pull --lock`"
        ) from error
    for name in pins:
        try:
            check_adapter_name(name)
        except ConceptSpecError as error:
            raise AdapterFormatError(f"{path}: {error}; rename its table there") from error
    return pins


def find_pinned(path: Path, **access: Unpack[FileOptions]) -> dict[str, Origin]:
    """Find every pinned file, by adapter name.

    Args:
        path: The lock.
        access: `token`, `cache_dir` and `local_files_only`, as of `hub.find`.

    Raises:
        AdapterIntegrityError: A file is not the one that was pinned.
        HubError, AdapterFormatError: A file was not found.
    """
    return {name: _find_pin(name, pin, path, access) for name, pin in read_lock(path).items()}


def _find_pin(name: str, pin: Pin, lock: Path, access: FileOptions) -> Origin:
    chosen: FileOptions = {
        **access,
        "weight_name": pin.weight_name or None,
        "subfolder": pin.subfolder or None,
        "revision": pin.revision or None,
    }
    origin = find(pin.source if pin.revision else lock.parent / pin.source, **chosen)
    if origin.sha256 != pin.sha256:
        raise AdapterIntegrityError(
            f"{name}: {origin} has sha256 {origin.sha256[:12]}, {lock.name} pins "
            f"{pin.sha256[:12]}; restore the file, or pin the new one with `erasepro pull --lock`"
        )
    return origin
