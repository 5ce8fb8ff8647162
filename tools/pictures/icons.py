"""Pictures of things by seven hands, and the words for them, from the registry's icon packages.

    python tools/pictures/icons.py FOLDER [--things things.txt]

Writes `rgba.npy`, `pictures.json` and `things.json` into FOLDER (15 seconds; npm and resvg-py).
Names are CLDR's, which captions use. CLDR's keywords are used by no caption; `things.txt` says
which of them name the thing, as "kitty" does, rather than tell of it, as "purring" would.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image
from tqdm import tqdm

from diffusers_erasepro.pictures.captions import BACKGROUNDS, HELD_OUT, TRAINED

SETS = {
    "noto": "Noto",
    "noto-v1": "Blob",
    "twemoji": "Twemoji",
    "fluent-emoji": "Fluent",
    "fluent-emoji-flat": "Fluent Flat",
    "emojione": "EmojiOne",
    "fxemoji": "Firefox",
}
WIDTH = 72
PISTOL_BY = ("noto-v1", "emojione", "fxemoji")
"""These still draw a revolver under the name "pistol"; the others draw a water pistol."""
PISTOL_WORDS = ("gun", "handgun", "revolver", "weapon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--things", type=Path, default=Path(__file__).with_name("things.txt"))
    args = parser.parse_args()
    packages = args.folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    icons = {name: read(packages, f"@iconify-json/{name}", "icons.json") for name in SETS}
    emojis = read(packages, "emojibase-data", "en/data.json")
    keywords = {emoji["label"]: emoji.get("tags", []) for emoji in emojis}
    names = chosen(args.things)
    rgba = []
    entries = []
    for name in tqdm(names, "things"):
        for source, drawing in drawings(icons, name).items():
            rgba.append(rendered(drawing))
            entries.append({"thing": name, "hand": SETS[source]})
    keywords["pistol"] = list(PISTOL_WORDS)
    keywords["water pistol"] = list(set(keywords["water pistol"]) - {"pistol", *PISTOL_WORDS})
    np.save(args.folder / "rgba.npy", np.stack(rgba))
    write(args.folder / "pictures.json", entries)
    write(args.folder / "things.json", words(names, entries, keywords))
    print(f"{len(rgba)} pictures of {len(names)} things")


def read(packages: Path, package: str, file: str) -> dict | list:
    """A JSON file of a registry package, fetched once by npm."""
    folder = packages / package.replace("/", "-")
    if not folder.exists():
        command = ["npm", "pack", "--silent", "--pack-destination", str(packages), package]
        packed = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
        with tarfile.open(packages / packed.stdout.strip()) as archive:
            archive.extractall(folder, filter="data")
    return json.loads((folder / "package" / file).read_text("utf-8"))


def drawings(icons: dict[str, dict], name: str) -> dict[str, str]:
    """The SVG of every set that draws this thing."""
    if name == "pistol":
        return {source: svg(icons[source], "pistol") for source in PISTOL_BY}
    drawn = {source: svg(icons[source], key(name)) for source in SETS}
    return {source: drawing for source, drawing in drawn.items() if drawing}


def key(name: str) -> str:
    """How the sets spell a CLDR name."""
    plain = re.sub(r"[\u2019'.]", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def svg(icons: dict, name: str) -> str | None:
    """One icon of a set as a whole SVG; aliases are followed once."""
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"].get(name) or icons["icons"].get(alias.get("parent"))
    if icon is None:
        return None
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {space} viewBox="{box}">{icon["body"]}</svg>'


def rendered(drawing: str) -> np.ndarray:
    """`(72, 72, 4)` uint8, in the middle of a transparent square."""
    png = resvg_py.svg_to_bytes(svg_string=drawing, width=WIDTH, height=WIDTH)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    image.thumbnail((WIDTH, WIDTH))
    square = Image.new("RGBA", (WIDTH, WIDTH), (0, 0, 0, 0))
    square.paste(image, ((WIDTH - image.width) // 2, (WIDTH - image.height) // 2))
    return np.asarray(square)


def chosen(file: Path) -> dict[str, list[str]]:
    """Every thing, and which of its keywords are synonyms: lines "name" or "name: word, word"."""
    things = {}
    for line in file.read_text("utf-8").splitlines():
        name, _, listed = line.partition(": ")
        things[name] = listed.split(", ") if listed else []
    return things


def words(
    synonyms: dict[str, list[str]], entries: list[dict], keywords: dict[str, list[str]]
) -> dict:
    """Per thing its hands, its synonyms, and its other keywords.

    A keyword that captions are made of, or that names another thing, is left out.
    """
    said = caption_words() | set(synonyms)
    table = {}
    for name, listed in synonyms.items():
        own = set(keywords[name]) - said
        if unknown := set(listed) - own:
            raise ValueError(f"{sorted(unknown)} are no keywords of {name!r} that stay unsaid")
        table[name] = {
            "hands": sorted(entry["hand"] for entry in entries if entry["thing"] == name),
            "synonyms": listed,
            "related": sorted(own - set(listed)),
        }
    return table


def caption_words() -> set[str]:
    """Every word of the phrasings and backgrounds."""
    said = set(BACKGROUNDS)
    for phrasing in (TRAINED, HELD_OUT):
        for ways in vars(phrasing).values():
            said.update(re.findall(r"[a-z]+", " ".join(ways)))
    return said


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
