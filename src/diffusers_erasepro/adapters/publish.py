"""What is published of an adapter's folder: its card, written anew for others, and its pictures."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import ModelCard

from .hub import CARD_MARK, CARD_NAME, PICTURES, PUSHED
from .model_card import GLYPHS, LOADING, build_card, find_base

OWN_CARD = f"the text of {CARD_NAME} is your own, and goes as it is"


def rebuild_card(
    folder: Path,
    header: Mapping[str, Any],
    *,
    repo_id: str,
    subfolder: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
) -> ModelCard | None:
    """The card of an adapter's folder as it is published; None where its text is the user's own.

    Args:
        folder: Holds the adapter, and the card and pictures of when it was made, if any.
        header: The adapter's.
        repo_id: Where it is published; the snippet loads it from there.
        subfolder: Where in the repository.
        base_model: As for `build_card`; None takes what the folder's card says.
        license: As for `build_card`; None takes what the folder's card says.
    """
    path = folder / CARD_NAME
    text = path.read_text("utf-8", "replace") if path.is_file() else CARD_MARK
    if CARD_MARK not in text:
        return None
    known = _read_metadata(text)
    said = find_base(_first_text(known.get("base_model")))
    if said is None and _loads_glyphs(text):
        said = GLYPHS
    return build_card(
        header,
        repo_id=repo_id,
        base_model=base_model or said,
        license=license or _first_text(known.get("license")),
        pictures=_find_pictures(folder, known.get("widget")),
        subfolder=subfolder,
    )


def _read_metadata(card: str) -> dict[str, Any]:
    """The table in front of a card; an empty one where that cannot be read."""
    block = re.match(r"---\r?\n(.*?)\n---", card, re.DOTALL)
    try:
        found = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _first_text(value: object) -> str | None:
    """A text in a card's table; the first of several, None of anything else."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else None


def _loads_glyphs(card: str) -> bool:
    """Whether a card's snippet loads the glyph world, which no metadata can name."""
    return LOADING[GLYPHS] in card


def _find_pictures(folder: Path, widget: object) -> dict[str, str]:
    """Prompt -> picture in the folder: those of the former gallery, and others by their names."""
    named: dict[str, str] = {}
    for row in widget if isinstance(widget, list) else ():
        if isinstance(row, dict) and isinstance(row.get("output"), dict):
            named[str(row["output"].get("url"))] = str(row.get("text") or "")
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        file = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix in PICTURES:
            prompt = named.get(file) or re.sub(r"[-_\s]+", " ", PurePosixPath(file).stem).strip()
            found.setdefault(prompt, file)
    return found


def list_unknown(card: ModelCard) -> list[str]:
    """What others ask of a card and this one does not say, each with how to say it."""
    missing = []
    data: Any = card.data
    if data.get("base_model") is None and not _loads_glyphs(card.content):
        missing.append("no base model, so nobody can find what it fits: --base-model OWNER/NAME")
    if data.get("license") is None:
        missing.append("no licence, so nobody may use it: --license NAME, such as apache-2.0")
    if not data.get("widget"):
        missing.append(
            f"no picture: put one ({', '.join(PICTURES)}) into the folder, named as its prompt"
        )
    return [f"the card names {what}" for what in missing]


@contextmanager
def with_card(folder: Path, card: Any) -> Iterator[Path]:
    """What of an adapter's folder is uploaded, with another card; the folder itself for None."""
    if card is None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        copied = Path(temporary) / "published"
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder)
            if file.is_file() and any(fnmatch(name.as_posix(), pattern) for pattern in PUSHED):
                (copied / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copied / name)
        card.save(copied / CARD_NAME)
        yield copied
