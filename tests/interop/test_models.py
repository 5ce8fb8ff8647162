"""What `MODEL` may be: the same pipeline from its folder and from a single file.

What is missing is named with what to do.
"""

import pytest
import torch
from safetensors.torch import save_file

from conftest import bits, draw
from diffusers_erasepro import glyphs
from diffusers_erasepro.cli import main as cli
from diffusers_erasepro.errors import (
    AdapterFormatError,
    HubError,
    HubNotFoundError,
    UnsafeFileError,
)
from diffusers_erasepro.interop.pipelines import load_model
from single_file import save_single_file


@pytest.fixture(scope="module")
def checkpoint(shipped, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_single_file(shipped, path)
    return path


def test_a_single_file_is_the_same_pipeline_and_takes_the_same_adapter(
    checkpoint, shipped, no_star
):
    pipe = load_model(str(checkpoint), config=str(glyphs.WEIGHTS))
    before = bits(shipped)
    after = {name.replace("text_model.", ""): value for name, value in bits(pipe).items()}
    assert all(
        torch.equal(value, after[name.replace("text_model.", "")]) for name, value in before.items()
    )
    pipe.load_erasure_adapter(no_star)
    assert pipe.verify_erasure().ok
    with pipe.erasure_disabled():
        assert torch.equal(draw(pipe, ["a red star"]), draw(shipped, ["a red star"]))


def test_a_single_file_whose_configuration_is_not_at_hand_says_what_to_give(checkpoint, hub):
    with pytest.raises(HubError, match=r"configuration of model\.safetensors.*--config"):
        load_model(str(checkpoint))


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(UnsafeFileError, match="pickles are never loaded"):
        load_model(str(tmp_path / "a.ckpt"))
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(
        AdapterFormatError, match=r"b\.safetensors is not a readable safetensors file"
    ):
        load_model(str(tmp_path / "b.safetensors"), config=str(glyphs.WEIGHTS))
    with pytest.raises(HubNotFoundError, match=r"holds no model_index\.json"):
        load_model(str(tmp_path))


def test_a_configuration_of_another_model_is_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(
        AdapterFormatError, match=r"a\.safetensors is not the model that .* describes; --config"
    ):
        load_model(str(tmp_path / "a.safetensors"), config=str(glyphs.WEIGHTS))


@pytest.mark.slow
def test_the_command_erases_from_a_single_file(checkpoint, tmp_path, monkeypatch):
    words = [
        "erasepro",
        "erase",
        str(checkpoint),
        "--config",
        str(glyphs.WEIGHTS),
        "--target",
        "star",
        "--anchor",
        "circle",
    ]
    monkeypatch.setattr("sys.argv", [*words, "-o", str(tmp_path / "no-star")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    pipe = load_model("glyphs")
    pipe.load_erasure_adapter(tmp_path / "no-star")
    assert pipe.verify_erasure().ok
