"""The README as the package's description, with links that work on a package index too."""

import sys
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

sys.path.insert(0, str(Path(__file__).parent / "tools"))

from repository_links import make_absolute, repository_address


class Description(MetadataHookInterface):
    """Called by hatchling when it builds a wheel or an sdist."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        address = repository_address(root / "pyproject.toml")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": make_absolute(text, "README.md", address),
        }
