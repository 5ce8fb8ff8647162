"""Links of a page into the repository, made absolute for readers who have no clone.

In the README and the documents such links are relative, so that they lead somewhere in a clone and
on a repository's page. The package's metadata (`hatch_build.py`) and the site (this file is a hook
of MkDocs) need the repository's address, which stands in `[project.urls]` of pyproject.toml alone.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!https?:|#|mailto:)[^)\s]+)\)")


def repository_address(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """The one place where the repository's address stands."""
    with pyproject.open("rb") as file:
        urls = tomllib.load(file)["project"]["urls"]
    return str(urls["Repository"]).rstrip("/")


def make_absolute(
    text: str, page: str, address: str, leaves: Callable[[str], bool] = lambda path: True
) -> str:
    """`text` with relative links made absolute.

    Args:
        text: Markdown.
        page: Where it lies, relative to the repository's root.
        address: The repository's.
        leaves: Whether a link to this path of the repository is changed.
    """

    def replace(match: re.Match[str]) -> str:
        target, hash_mark, anchor = match["target"].partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if not leaves(path):
            return match[0]
        kind = "raw" if match["image"] else "blob"
        link = f"{address}/{kind}/main/{path}{hash_mark}{anchor}"
        return f"{match['image']}[{match['text']}]({link})"

    return LINK.sub(replace, text)


def on_page_markdown(markdown: str, *, page: Any, **context: Any) -> str:
    """MkDocs: links that leave the folder of documents go to the repository."""
    return make_absolute(
        markdown,
        f"docs/{page.file.src_uri}",
        repository_address(),
        leaves=lambda path: not path.startswith("docs/"),
    )
