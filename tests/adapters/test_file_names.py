"""File and folder names as people and caches have them."""

import shutil
from dataclasses import replace

import pytest

from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec
from diffusers_erasepro.adapters import hub as hubs
from diffusers_erasepro.adapters.hub import check_weight_name, find
from diffusers_erasepro.adapters.lockfile import add_pin, find_pinned
from diffusers_erasepro.adapters.report import NAN
from diffusers_erasepro.config.options import OtherMethod
from diffusers_erasepro.errors import AdapterFormatError, HubNotFoundError, UnsafeFileError
from diffusers_erasepro.interop.pipelines import load_model

NAMES = (
    "no-star (1).safetensors",
    "no star, please!.safetensors",
    "(copy) no-star.safetensors",
    "no-star@2x+final [v2] #1 & more.safetensors",
    "étoile à l'ancienne.safetensors",
    "星なし.safetensors",
)


@pytest.mark.parametrize("name", NAMES)
def test_any_plain_name_is_written_and_read(no_star, tmp_path, name):
    no_star.save_pretrained(tmp_path, weight_name=name)
    assert ErasureAdapter.from_pretrained(tmp_path).digest == no_star.digest
    no_star.save_pretrained(tmp_path / "two", weight_name="other.safetensors")
    shutil.copy(tmp_path / name, tmp_path / "two" / name)
    with pytest.raises(AdapterFormatError, match="weight_name=, or give the file itself"):
        ErasureAdapter.from_pretrained(tmp_path / "two")
    assert find(tmp_path / "two", weight_name=name).path.name == name
    add_pin(tmp_path / "erasures.lock", "no-star", find(tmp_path / name))
    assert find_pinned(tmp_path / "erasures.lock")["no-star"].path.name == name


@pytest.mark.parametrize(
    "name",
    [
        "../a.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        "C:a.safetensors",
        ".safetensors",
        "a\n.safetensors",
        "a\0.safetensors",
        "a.bin",
        ".a.safetensors",
        "",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(UnsafeFileError, match="plain file name"):
        check_weight_name(name)


def test_a_hidden_file_beside_it_is_not_asked_about(no_star, tmp_path):
    no_star.save_pretrained(tmp_path, weight_name="no-star.safetensors")
    (tmp_path / "._no-star.safetensors").write_bytes(b"a Mac's notes")
    assert ErasureAdapter.from_pretrained(tmp_path).digest == no_star.digest


LENGTHS = ("a" * 28 + ".safetensors", "f" * 52 + ".safetensors", "0" * 40 + ".safetensors")


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("links", [True, False])
def test_only_the_name_of_a_blob_is_a_hash(hub, no_star, tmp_path, name, links, monkeypatch):
    no_star.save_pretrained(tmp_path / "made", weight_name=name)
    hubs.push(tmp_path / "made", "me/no-star")
    if not links:
        monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda _: False)
    for _ in range(2):
        with pytest.warns(UserWarning, match="not pinned"):
            found = find("me/no-star", weight_name=name, cache_dir=tmp_path / "cache")
        assert found.path.is_file() and found.path.is_symlink() == links


MISTYPED = ("adapters/no-satr", "adapters/no-star.safetensors", "adapters/x")


@pytest.mark.parametrize("typed", MISTYPED)
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(hub, no_star, tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    no_star.save_pretrained("adapters/no-star")
    hub.requests.clear()
    match = "did you mean 'adapters/no-star'" if "st" in typed else "no file or folder at"
    with pytest.raises(AdapterFormatError, match=match):
        ErasureAdapter.from_pretrained(typed)
    with pytest.raises(HubNotFoundError, match="no model"):
        load_model(typed)
    assert hub.requests == []


def test_with_a_revision_it_is_the_hub_that_is_meant(hub, no_star, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    no_star.save_pretrained(tmp_path / "made")
    hubs.push(tmp_path / "made", "me/no-star")
    with pytest.warns(UserWarning, match="not pinned"):
        assert find("me/no-star", revision="main").repo == "me/no-star"


def test_the_card_of_an_import_says_what_was_not_measured(no_star, run, tmp_path):
    layers = tuple(replace(layer, gap=NAN) for layer in no_star.report.layers)
    report = replace(
        no_star.report,
        listed_residual=NAN,
        held_out_residual=NAN,
        held_out_mean=NAN,
        drift=NAN,
        layers=layers,
    )
    spec = ErasureSpec((Concept("star", "circle"),), preserve=())
    made = replace(no_star, spec=spec, options=OtherMethod("import"), goals={}, report=report)
    made.save_pretrained(tmp_path)
    texts = [str(made.card()), repr(made)]
    texts += [run("show", tmp_path)[1], run("list", tmp_path)[1], run("card", tmp_path)[1]]
    for text in texts:
        assert "nan" not in text.lower().replace("stable", "") and "not measured" in text
