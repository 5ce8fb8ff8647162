"""The file: same bytes, a LoRA for stock diffusers, and a named error for everything that is not one."""

import copy
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import draw
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase
from diffusers_erasepro.adapter import WEIGHT_NAME
from diffusers_erasepro.errors import AdapterFormatError, AdapterIntegrityError, UnsafeFileError


@pytest.fixture
def saved(no_star, tmp_path):
    return no_star.save_pretrained(tmp_path / "no-star")


def test_save_load_save_gives_the_same_bytes(no_star, saved, tmp_path):
    loaded = ErasureAdapter.from_pretrained(saved.parent)
    again = loaded.save_pretrained(tmp_path / "again")
    assert again.read_bytes() == saved.read_bytes() == no_star.to_bytes()
    assert (loaded.spec, loaded.options, loaded.report.layers) == (no_star.spec, no_star.options, no_star.report.layers)
    assert ErasureAdapter.from_pretrained(saved).digest == no_star.digest


def test_the_file_holds_factors_and_all_it_takes_to_make_it_again(shipped, saved):
    loaded = ErasureAdapter.from_pretrained(saved)
    assert erase(shipped, loaded.spec, **loaded.options.to_dict()).to_bytes() == saved.read_bytes()


def test_readable_by_others_as_the_umask_has_it(saved):
    assert os.stat(saved).st_mode & 0o777 == 0o644


@pytest.mark.parametrize("layers", [(0, -1), ("kv",), (1, "kv")])
def test_stock_lora_loading_draws_the_same(shipped, preserve, tmp_path, layers):
    adapter = erase(shipped, ErasureSpec((Concept("star", "circle"),), preserve=preserve), layers=layers)
    folder = adapter.save_pretrained(tmp_path).parent
    stock, ours = copy.deepcopy(shipped), erasable(copy.deepcopy(shipped))
    prompts = ["a red star on snow", "a blue ring at night"]
    base = draw(stock, prompts)
    stock.load_lora_weights(folder)
    ours.load_erasure_adapter(folder)
    torch.testing.assert_close(draw(stock, prompts), draw(ours, prompts), atol=2e-3, rtol=0)
    assert (draw(ours, prompts)[0] - base[0]).abs().max() > 0.05


def corrupt(path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_in_a_tensor_is_found(saved, seed):
    size = int.from_bytes(saved.read_bytes()[:8], "little") + 8
    place = size + int(torch.randint(saved.stat().st_size - size, (1,), generator=torch.Generator().manual_seed(seed)))
    corrupt(saved, lambda data: data.__setitem__(place, data[place] ^ 4))
    with pytest.raises(AdapterIntegrityError, match=r"sha256|not finite"):
        ErasureAdapter.from_pretrained(saved)


def rewrite(path, tensors=None, **header):
    """The file with some header entries or tensors replaced, signed again where tensors stay."""
    with safe_open(path, "pt") as file:
        old, meta = {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["erasepro"])  # noqa: SIM118
    save_file(tensors or old, path, metadata={"erasepro": json.dumps(meta | header)})


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda p: p.write_bytes(b""), AdapterFormatError, "not a readable safetensors"),
        (lambda p: p.write_bytes(p.read_bytes()[:200]), AdapterFormatError, "not a readable safetensors"),
        (lambda p: p.write_bytes(p.read_bytes()[:-10]), AdapterFormatError, "not a readable safetensors"),
        (
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            AdapterFormatError,
            "Git-LFS pointer",
        ),
        (lambda p: p.write_text("<!DOCTYPE html><html>"), AdapterFormatError, "a web page"),
        (lambda p: p.write_bytes((2**62).to_bytes(8, "little") + b"{}"), AdapterFormatError, "header of"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), AdapterFormatError, "no erasure adapter"),
        (lambda p: save_file({"a": torch.zeros(1)}, p, metadata={"erasepro": "{"}), AdapterFormatError, "not a readable"),
        (lambda p: save_file({"a": torch.zeros(1)}, p, metadata={"erasepro": "[]"}), AdapterFormatError, "header"),
        (lambda p: rewrite(p, schema=99), AdapterFormatError, "schema 99.*upgrade"),
        (lambda p: rewrite(p, ranks={}), AdapterFormatError, "does not describe"),
        (lambda p: rewrite(p, ranks={"text_encoder.x": 1}), AdapterFormatError, "does not describe"),
        (lambda p: rewrite(p, spec={"concepts": []}), AdapterFormatError, "no concepts"),
        (lambda p: rewrite(p, report={"x": 1}), AdapterFormatError, "does not describe"),
    ],
)
def test_files_that_are_no_adapter(saved, damage, error, says):
    damage(saved)
    with pytest.raises(error, match=says):
        ErasureAdapter.from_pretrained(saved)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "x.bin", "a/b.safetensors", ""])
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
    with pytest.raises(AdapterFormatError, match=r"\['a.safetensors', 'b.safetensors'\]; say which"):
        ErasureAdapter.from_pretrained(tmp_path)
    assert ErasureAdapter.from_pretrained(tmp_path, weight_name="b.safetensors").digest == no_star.digest


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(AdapterFormatError, match="no file or folder at"):
        ErasureAdapter.from_pretrained(tmp_path / "nowhere")


def test_a_save_that_fails_leaves_the_old_file_and_no_temporary(no_star, no_cross, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        no_cross.save_pretrained(saved.parent)
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == [WEIGHT_NAME]
