"""The file: same bytes, a LoRA for stock diffusers.

Damaged ones are in `test_files`, broken saves in `test_faults`.
"""

import copy
import os

import pytest
import torch

from conftest import draw
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase
from diffusers_erasepro.errors import AdapterFormatError, UnsafeFileError


@pytest.fixture
def saved(no_star, tmp_path):
    return no_star.save_pretrained(tmp_path / "no-star")


def test_save_load_save_gives_the_same_bytes(no_star, saved, tmp_path):
    loaded = ErasureAdapter.from_pretrained(saved.parent)
    again = loaded.save_pretrained(tmp_path / "again")
    assert again.read_bytes() == saved.read_bytes() == no_star.to_bytes()
    assert (loaded.spec, loaded.options, loaded.report.layers) == (
        no_star.spec,
        no_star.options,
        no_star.report.layers,
    )
    assert ErasureAdapter.from_pretrained(saved).digest == no_star.digest


def test_the_file_holds_factors_and_all_it_takes_to_make_it_again(shipped, saved):
    loaded = ErasureAdapter.from_pretrained(saved)
    assert erase(shipped, loaded.spec, **loaded.options.to_dict()).to_bytes() == saved.read_bytes()


def test_readable_by_others_as_the_umask_has_it(saved):
    assert os.stat(saved).st_mode & 0o777 == 0o644


@pytest.mark.parametrize("layers", [(0, -1), ("kv",), (1, "kv")])
def test_stock_lora_loading_draws_the_same(shipped, preserve, tmp_path, layers):
    adapter = erase(
        shipped, ErasureSpec((Concept("star", "circle"),), preserve=preserve), layers=layers
    )
    folder = adapter.save_pretrained(tmp_path).parent
    stock = copy.deepcopy(shipped)
    ours = erasable(copy.deepcopy(shipped))
    prompts = ["a red star on snow", "a blue ring at night"]
    base = draw(stock, prompts)
    stock.load_lora_weights(folder)
    ours.load_erasure_adapter(folder)
    torch.testing.assert_close(draw(stock, prompts), draw(ours, prompts), atol=2e-3, rtol=0)
    assert (draw(ours, prompts)[0] - base[0]).abs().max() > 0.05


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "x.bin", "a/b.safetensors", ""]
)
def test_paths_that_lead_outside_are_refused_both_ways(no_star, saved, name):
    with pytest.raises(UnsafeFileError, match="plain file name"):
        no_star.save_pretrained(saved.parent, weight_name=name)
    with pytest.raises(UnsafeFileError, match="plain file name"):
        ErasureAdapter.from_pretrained(saved.parent, weight_name=name)
    with pytest.raises(UnsafeFileError, match="leads out"):
        ErasureAdapter.from_pretrained(saved.parent, subfolder="../..")


def test_pickles_are_never_loaded(tmp_path):
    torch.save({}, tmp_path / "adapter.bin")
    with pytest.raises(UnsafeFileError, match="pickles are never loaded"):
        ErasureAdapter.from_pretrained(tmp_path / "adapter.bin")
    with pytest.raises(AdapterFormatError, match="no safetensors file"):
        ErasureAdapter.from_pretrained(tmp_path)


def test_several_files_need_a_choice(no_star, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        no_star.save_pretrained(tmp_path, weight_name=name)
    with pytest.raises(
        AdapterFormatError, match=r"\['a.safetensors', 'b.safetensors'\]; say which"
    ):
        ErasureAdapter.from_pretrained(tmp_path)
    assert (
        ErasureAdapter.from_pretrained(tmp_path, weight_name="b.safetensors").digest
        == no_star.digest
    )


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(AdapterFormatError, match="no file or folder at"):
        ErasureAdapter.from_pretrained(tmp_path / "nowhere")
