"""The adapters folder: every file loads, verifies and says what it is; every spec can be meant.

The index is complete.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from diffusers_erasepro import ErasureAdapter, ErasureSpec, erase, glyphs
from diffusers_erasepro.config.kinds import known_kinds

ADAPTERS = Path(__file__).parents[2] / "adapters"
READY = sorted(p for p in (ADAPTERS / "glyphs").iterdir() if p.is_dir())
SPECS = sorted(ADAPTERS.glob("specs/*/spec.toml"))


def module():
    spec = importlib.util.spec_from_file_location("make", ADAPTERS / "make.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_every_shape_every_style_and_the_attribute_are_there():
    erased = {c.target for p in READY for c in ErasureAdapter.from_pretrained(p).spec.concepts}
    assert erased == {*glyphs.SHAPES, *glyphs.STYLES, "cracked"} - {glyphs.PLAIN_STYLE}


@pytest.mark.parametrize("folder", READY, ids=lambda p: p.name)
def test_a_ready_adapter_is_whole(folder, pipe):
    pipe.load_erasure_adapter(folder)
    assert pipe.verify_erasure().ok
    adapter = ErasureAdapter.from_pretrained(folder)
    assert ErasureSpec.from_toml((folder / "spec.toml").read_text()) == adapter.spec
    assert ModelCard.load(folder / "README.md").data.widget[0]["output"] == {
        "url": "before-after.png"
    }
    assert Image.open(folder / "before-after.png").size == (256, 128)


def test_the_folder_is_small():
    assert sum(p.stat().st_size for p in ADAPTERS.rglob("*") if p.is_file()) < 6e6


@pytest.mark.slow
@pytest.mark.parametrize("folder", READY[::6], ids=lambda p: p.name)
def test_the_spec_makes_the_adapter_again(folder, shipped):
    kept = ErasureAdapter.from_pretrained(folder)
    made = erase(shipped, kept.spec, max_rank=kept.options.max_rank)
    for name, factors in kept.edits.items():
        torch.testing.assert_close(made.edits[name].dense(), factors.dense(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.parent.name)
def test_a_spec_for_real_models_can_be_meant(path):
    spec = ErasureSpec.from_toml(path.read_text())
    kept = {*spec.preserve_captions()}
    assert not {*spec.preserve} - kept, "a preserve caption names a target"
    assert len(spec.preserve) >= 8 and len(kept) > 1500
    for concept in spec.concepts:
        assert concept.anchor and concept.soft and concept.held_out
        assert len(concept.near) >= 2 and not concept.caveats
    assert spec.description and ErasureSpec.from_toml(spec.to_toml()) == spec


def test_there_are_specs_of_every_kind():
    assert len(SPECS) >= 40
    kinds = {c.kind.name for p in SPECS for c in ErasureSpec.from_toml(p.read_text()).concepts}
    assert kinds == {*known_kinds()}
    assert {"van-gogh", "mickey-mouse", "nudity", "violence", "nike-logo", "church"} <= {
        p.parent.name for p in SPECS
    }


def test_the_index_is_what_the_folders_say():
    assert (ADAPTERS / "README.md").read_text() == module().index()
