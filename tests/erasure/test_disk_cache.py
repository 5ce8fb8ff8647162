"""Statistics on disk: a second process gets the same bits sooner, and nobody else notices."""

import os
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_erasepro import Concept, ErasureSpec, erase
from diffusers_erasepro.erasure import covariance, disk_cache
from diffusers_erasepro.erasure.disk_cache import read_cached, write_cached
from diffusers_erasepro.prompts.tokens import Tokens, token_ids

STAR = Concept("star", anchor="circle")
SITE = "encoder.layers.0.mlp.fc2"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty cache."""
    monkeypatch.setenv(disk_cache.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def count_runs(monkeypatch):
    """A function that runs another as a new process does, which remembers nothing.

    It returns what that returns, and how many lists of captions were encoded.
    """
    runs = []
    recorded = covariance._recorded

    def record(*args):
        runs.append(1)
        return recorded(*args)

    def run(function):
        monkeypatch.setattr(covariance, "_moments", type(covariance._moments)())
        monkeypatch.setattr(covariance, "_recorded", record)
        runs.clear()
        return function(), len(runs)

    return run


@pytest.fixture
def statistics(shipped, preserve, count_runs):
    """A function that computes the statistics of a linear in a new process."""
    tokens = Tokens(token_ids(shipped.tokenizer, preserve[:40]))
    sites = {SITE: shipped.text_encoder.get_submodule(SITE)}

    def compute():
        found = covariance.second_moments(
            shipped.text_encoder, tokens, sites, key="key", on_disk=True
        )
        return {name: value.numpy().tobytes() for name, value in found.items()}

    return lambda: count_runs(compute)


def files(folder):
    return sorted(folder.iterdir())


def test_with_without_and_from_the_cache_the_bits_are_the_same(
    folder, shipped, preserve, count_runs, monkeypatch
):
    spec = ErasureSpec((STAR,), preserve=preserve)

    def make():
        return erase(shipped, spec, layers=(0, -1), measure=False).to_bytes()

    monkeypatch.setenv(disk_cache.FOLDER, "off")
    without, many = count_runs(make)
    assert not folder.exists()
    monkeypatch.setenv(disk_cache.FOLDER, str(folder))
    first, as_many = count_runs(make)
    second, fewer = count_runs(make)
    assert without == first == second
    assert many == as_many == fewer + 1
    assert all(file.name.startswith(disk_cache.PREFIX) for file in files(folder))


def test_a_damaged_file_is_made_again(folder, statistics):
    made, count = statistics()
    whole = {file: file.read_bytes() for file in files(folder)}
    cut, flipped, *_ = whole
    cut.write_bytes(whole[cut][:-9])
    bits = bytearray(whole[flipped])
    bits[-5] ^= 1
    flipped.write_bytes(bits)
    assert statistics() == (made, count)
    assert {file: file.read_bytes() for file in files(folder)} == whole
    assert statistics() == (made, count - 1)


def test_a_folder_that_cannot_be_made_is_no_error(statistics, monkeypatch, tmp_path, recwarn):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(disk_cache.FOLDER, str(tmp_path / "file" / "cache"))
    count = statistics()[1]
    assert statistics()[1] == count
    assert not recwarn.list


def test_a_folder_that_cannot_be_written_is_no_error(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(disk_cache.tempfile, "mkstemp", refuse)
    write_cached("content", {"a": torch.ones(2, 2)})
    assert read_cached("content", ["a"]) == {}


def refuse(*_):
    raise PermissionError("read-only file system")


def test_another_content_name_or_number_of_threads_is_another_file(folder):
    write_cached("content", {"a": torch.ones(2, 2)})
    assert read_cached("content", ["a", "b"]).keys() == {"a"}
    assert read_cached("other", ["a"]) == {}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert read_cached("content", ["a"]) == {}
    finally:
        torch.set_num_threads(threads)


def test_what_was_used_longest_ago_is_evicted_and_no_other_file(folder, monkeypatch):
    folder.mkdir()
    save_file({"weight": torch.ones(100, 100)}, folder / "model.safetensors")
    (folder / f"{disk_cache.PREFIX}left.part").write_bytes(b"half")
    os.utime(folder / f"{disk_cache.PREFIX}left.part", (0, 0))
    for age, name in enumerate("cba"):
        write_cached("content", {name: torch.ones(32, 32, dtype=torch.float64)})
        then = time.time() - 100 * (3 - age)
        for file in folder.glob(f"{disk_cache.PREFIX}*.safetensors"):
            if file.stat().st_mtime > then + 50:
                os.utime(file, (then, then))
    assert read_cached("content", ["c"])  # which is used now, though it is the oldest
    monkeypatch.setenv(disk_cache.LIMIT, "30000")
    write_cached("content", {"d": torch.ones(32, 32, dtype=torch.float64)})
    assert read_cached("content", "abcd").keys() == {"a", "c", "d"}
    assert (folder / "model.safetensors").exists()
    assert not [*folder.glob("*.part")]
    write_cached("content", {"large": torch.ones(64, 64, dtype=torch.float64)})
    assert read_cached("content", ["large"]) == {}
    assert read_cached("content", "abcd").keys() == {"a", "c", "d"}


def test_two_writers_and_a_reader_never_meet_half_a_file(folder):
    value = torch.arange(250_000, dtype=torch.float64)
    wrong = []

    def write():
        for _ in range(8):
            write_cached("content", {"a": value})

    def read():
        while writers[0].is_alive():
            found = read_cached("content", ["a"])
            if found and not torch.equal(found["a"], value):
                wrong.append(found)

    writers = [threading.Thread(target=write) for _ in range(2)]
    threads = [*writers, threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    (file,) = files(folder)
    assert torch.equal(load_file(file)["moments"], value)


def test_what_a_hook_of_somebody_elses_computes_is_not_kept(folder, shipped, statistics):
    block = shipped.text_encoder.encoder.layers[0]
    handle = block.register_forward_pre_hook(lambda *_: None)
    try:
        statistics()
    finally:
        handle.remove()
    assert not folder.exists()
