"""Files from strangers.

Whatever is wrong with one is a named error, and the pipeline stays as it is.
"""

import copy
import hashlib
import json
import random
import struct
import time

import pytest
import torch

from conftest import assert_same_bits, bits
from diffusers_erasepro import ErasureAdapter, erasable
from diffusers_erasepro.adapters.file import digest_tensors
from diffusers_erasepro.adapters.header import seal
from diffusers_erasepro.adapters.hub import WEIGHT_NAME
from diffusers_erasepro.errors import (
    AdapterFormatError,
    AdapterIntegrityError,
    BaseModelMismatchError,
    ErasureError,
    UnsafeFileError,
)


@pytest.fixture(scope="module")
def target(shipped):
    """One pipeline for all cases, as none of them may change it."""
    return erasable(copy.deepcopy(shipped))


@pytest.fixture(scope="module")
def untouched(target):
    return bits(target)


def parts(path):
    """The table, our header, and the data of a file."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    table = json.loads(raw[8 : 8 + size])
    return table, json.loads(table["__metadata__"]["erasepro"]), bytearray(raw[8 + size :])


def join(path, table, data):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def edit_table(change):
    """Damage of the safetensors table, nothing signed again."""

    def damage(path):
        table, _, data = parts(path)
        join(path, change(table) or table, data)

    return damage


def forge(change):
    """Damage by somebody who signs again: `change(header, tensors)`."""

    def damage(path):
        from safetensors.torch import load_file, save_file

        _, header, _ = parts(path)
        tensors = load_file(path)
        change(header, tensors)
        header["sha256"] = digest_tensors(tensors)
        header["seal"] = seal(header)
        save_file(tensors, path, metadata={"erasepro": json.dumps(header, sort_keys=True)})

    return damage


def scaled(prefix, factor):
    """Every tensor whose name holds `prefix`, times `factor`."""

    def change(_, tensors):
        for name in tensors:
            if prefix in name:
                tensors[name] = tensors[name] * factor

    return forge(change)


def first(tensors, holds):
    return next(name for name in tensors if holds in name)


def drop_layer(header, tensors):
    name = first(tensors, "mlp.fc2.lora_A").removesuffix(".lora_A.weight")
    for leaf in ("lora_A", "lora_B"):
        del tensors[f"{name}.{leaf}.weight"]
    header["ranks"].pop(name)


def drop_layer_quietly(header, tensors):
    drop_layer(header, tensors)
    header["report"]["layers"] = [
        row for row in header["report"]["layers"] if row["name"] in header["ranks"]
    ]


def rename(header, tensors, old, new):
    for name in [n for n in tensors if n.startswith(old)]:
        tensors[name.replace(old, new, 1)] = tensors.pop(name)
    for key in ("ranks", "base"):
        header[key] = {k.replace(old, new, 1): v for k, v in header[key].items()}
    for row in header["report"]["layers"]:
        row["name"] = row["name"].replace(old, new, 1)


def change_a(value):
    """Write one number into the first factor."""

    def change(_, tensors):
        tensors[first(tensors, "fc2.lora_A")][0, 0] = value

    return forge(change)


def put(name, value):
    return forge(lambda _, t: t.__setitem__(name, value))


def header(**entries):
    return forge(lambda h, _: h.update(entries))


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 4
    path.write_bytes(raw)


def flip_spec(path):
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"circle", b"circus", 1))


def entry(table, number):
    """The number-th tensor's entry."""
    return [v for k, v in table.items() if k != "__metadata__"][number]


def raw(text):
    return lambda path: path.write_bytes(text)


def table_of(count):
    entries = {
        f"t{i}": {"dtype": "F32", "shape": [0, 0], "data_offsets": [0, 0]} for i in range(count)
    }
    return {"__metadata__": {"erasepro": "{}"}, **entries}


UNREADABLE = "not a readable safetensors"
CASES = {
    "empty": (raw(b""), AdapterFormatError, UNREADABLE),
    "seven bytes": (raw(b"1234567"), AdapterFormatError, UNREADABLE),
    "eight bytes": (raw(struct.pack("<Q", 100)), AdapterFormatError, UNREADABLE),
    "cut in the table": (
        lambda p: p.write_bytes(p.read_bytes()[:300]),
        AdapterFormatError,
        UNREADABLE,
    ),
    "cut in the data": (
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        AdapterFormatError,
        UNREADABLE,
    ),
    "bytes behind": (
        lambda p: p.write_bytes(p.read_bytes() + b"x"),
        AdapterFormatError,
        UNREADABLE,
    ),
    "table length 2^63": (
        raw(struct.pack("<Q", 2**63) + b"{}"),
        AdapterFormatError,
        "a header of 9223372036854775808 bytes",
    ),
    "table over the cap": (
        raw(struct.pack("<Q", 9 * 2**20) + b" " * 9 * 2**20),
        AdapterFormatError,
        "at most 8388608",
    ),
    "a hundred thousand tensors": (
        lambda p: join(p, table_of(100_000), b""),
        AdapterFormatError,
        "at most 4096",
    ),
    "not UTF-8": (raw(struct.pack("<Q", 2) + b"\xff\xfe"), AdapterFormatError, UNREADABLE),
    "not JSON": (raw(struct.pack("<Q", 2) + b"{x"), AdapterFormatError, UNREADABLE),
    "JSON ten thousand deep": (
        lambda p: join(p, b'{"a":' + b"[" * 10_000, b""),
        AdapterFormatError,
        UNREADABLE,
    ),
    "a list": (lambda p: join(p, b"[]", b""), AdapterFormatError, "its header is no table"),
    "metadata is a list": (
        lambda p: join(p, {"__metadata__": []}, b""),
        AdapterFormatError,
        "its header is no table",
    ),
    "metadata is a number": (
        lambda p: join(p, {"__metadata__": {"erasepro": 5}}, b""),
        AdapterFormatError,
        UNREADABLE,
    ),
    "no metadata": (
        edit_table(lambda t: t.pop("__metadata__") and None),
        AdapterFormatError,
        "for a plain LoRA see",
    ),
    "a name twice": (
        edit_table(
            lambda t: json.dumps(t).replace('{"__meta', '{"a": 1, "a": 2, "__meta', 1).encode()
        ),
        AdapterFormatError,
        "names something twice",
    ),
    "our header names something twice": (
        edit_table(lambda t: t["__metadata__"].update(erasepro='{"schema": 1, "schema": 1}')),
        AdapterFormatError,
        "twice",
    ),
    "our header is no JSON": (
        edit_table(lambda t: t["__metadata__"].update(erasepro="{")),
        AdapterFormatError,
        UNREADABLE,
    ),
    "our header is a list": (
        edit_table(lambda t: t["__metadata__"].update(erasepro="[]")),
        AdapterFormatError,
        "not a table",
    ),
    "an integer tensor": (
        put("x.lora", torch.zeros(1, 1, dtype=torch.int64)),
        AdapterFormatError,
        "not a matrix of F32",
    ),
    "a boolean tensor": (
        put("x.lora", torch.zeros(1, 1, dtype=torch.bool)),
        AdapterFormatError,
        "not a matrix of F32",
    ),
    "a vector": (put("x.lora", torch.zeros(4)), AdapterFormatError, "not a matrix"),
    "a table entry without a shape": (
        edit_table(lambda t: t.update(x={"dtype": "F32"})),
        AdapterFormatError,
        "not a matrix",
    ),
    "a hole": (
        edit_table(lambda t: entry(t, 0)["data_offsets"].__setitem__(0, 4)),
        AdapterFormatError,
        UNREADABLE,
    ),
    "offsets beyond the file": (
        edit_table(lambda t: entry(t, -1).update(data_offsets=[0, 2**60])),
        AdapterFormatError,
        UNREADABLE,
    ),
    "two tensors in one place": (
        edit_table(
            lambda t: entry(t, 1).update(
                data_offsets=entry(t, 0)["data_offsets"], shape=entry(t, 0)["shape"]
            )
        ),
        AdapterFormatError,
        UNREADABLE,
    ),
    "offsets from the end to the beginning": (
        edit_table(lambda t: entry(t, 0)["data_offsets"].reverse()),
        AdapterFormatError,
        UNREADABLE,
    ),
    "a thousand dimensions": (
        edit_table(lambda t: entry(t, 0).update(shape=[1] * 1000)),
        AdapterFormatError,
        "not a matrix",
    ),
    "negative offsets": (
        edit_table(lambda t: entry(t, 0).update(data_offsets=[-4, 0])),
        AdapterFormatError,
        UNREADABLE,
    ),
    "a shape of 2^60": (
        edit_table(lambda t: entry(t, 0).update(shape=[2**30, 2**30])),
        AdapterFormatError,
        UNREADABLE,
    ),
    "unknown dtype": (
        edit_table(lambda t: entry(t, 0).update(dtype="F99")),
        AdapterFormatError,
        "not a matrix of F32",
    ),
    "a flipped bit in a tensor": (flip, AdapterIntegrityError, "sha256"),
    "a changed word in the spec": (flip_spec, AdapterIntegrityError, "seal"),
    "a NaN": (change_a(float("nan")), AdapterIntegrityError, "not finite"),
    "an infinity": (change_a(float("inf")), AdapterIntegrityError, "not finite"),
    "NaN in the goals": (scaled("lora_goal", float("nan")), AdapterIntegrityError, "not finite"),
    "factors a thousand times": (
        scaled("fc2.lora_B", 1000.0),
        AdapterIntegrityError,
        "times its weight, at most max_edit_size",
    ),
    "factors twice (forged alpha)": (
        scaled("fc2.lora_B", 2.0),
        AdapterIntegrityError,
        "does not erase what it lists",
    ),
    "factors zero": (
        scaled("fc2.lora_B", 0.0),
        AdapterIntegrityError,
        "does not erase what it lists",
    ),
    "goals of another prompt": (
        scaled("lora_goal", -1.0),
        AdapterIntegrityError,
        "does not erase what it lists",
    ),
    "goals of another shape": (
        forge(lambda _, t: t.update({first(t, "lora_goal"): torch.zeros(3, 5)})),
        AdapterIntegrityError,
        "its spec asks for",
    ),
    "no goals": (
        forge(lambda _, t: t.pop(first(t, "lora_goal"))),
        AdapterFormatError,
        "the goals are missing",
    ),
    "a missing layer": (forge(drop_layer), AdapterFormatError, "reported or stored, but not both"),
    "a missing layer, taken from the report too": (
        forge(drop_layer_quietly),
        AdapterIntegrityError,
        "does not erase",
    ),
    "a missing lora_B": (
        forge(lambda _, t: t.pop(first(t, "fc2.lora_B"))),
        AdapterFormatError,
        "does not describe",
    ),
    "a missing lora_A": (
        forge(lambda _, t: t.pop(first(t, "fc2.lora_A"))),
        AdapterFormatError,
        "does not describe",
    ),
    "an unknown tensor": (
        put("unet.conv_in.lora_A.weight", torch.zeros(1, 1)),
        AdapterFormatError,
        "unknown tensors",
    ),
    "a tensor of no component": (
        put("lora_A.weight", torch.zeros(1, 1)),
        AdapterFormatError,
        "unknown tensors",
    ),
    "an alpha": (
        put("text_encoder.alpha", torch.ones(1, 1)),
        AdapterFormatError,
        "unknown tensors",
    ),
    "rank of A is not rank of B": (
        forge(lambda _, t: t.update({first(t, "fc2.lora_A"): torch.zeros(1, 512)})),
        AdapterFormatError,
        "does not describe",
    ),
    "rank 0": (
        forge(lambda h, _: h["ranks"].update(dict.fromkeys(h["ranks"], 0))),
        AdapterFormatError,
        "does not describe",
    ),
    "rank above the tensor's": (
        forge(lambda h, _: h["ranks"].update(dict.fromkeys(h["ranks"], 99))),
        AdapterFormatError,
        "does not describe",
    ),
    "rank is true": (
        forge(lambda h, _: h["ranks"].update(dict.fromkeys(h["ranks"], True))),
        AdapterFormatError,
        "does not",
    ),
    "rank is a word": (
        forge(lambda h, _: h["ranks"].update(dict.fromkeys(h["ranks"], "2"))),
        AdapterFormatError,
        "does not",
    ),
    "ranks is a list": (header(ranks=[1]), AdapterFormatError, "does not describe"),
    "no ranks": (forge(lambda h, _: h.pop("ranks")), AdapterFormatError, "does not describe"),
    "no spec": (forge(lambda h, _: h.pop("spec")), AdapterFormatError, "does not describe"),
    "spec without concepts": (header(spec={"concepts": []}), AdapterFormatError, "no concepts"),
    "spec is a number": (header(spec=5), AdapterFormatError, "does not describe"),
    "no report": (forge(lambda h, _: h.pop("report")), AdapterFormatError, "does not describe"),
    "report of another kind": (header(report={"x": 1}), AdapterFormatError, "does not describe"),
    "base is a list": (header(base=[]), AdapterFormatError, "does not describe"),
    "base names another component": (
        header(base={"vae": {}}),
        AdapterFormatError,
        "no base is named",
    ),
    "options that cannot be": (
        forge(lambda h, _: h["options"].update(ridge=-1)),
        AdapterFormatError,
        "ridge must be",
    ),
    "a later schema": (
        header(schema=99),
        AdapterFormatError,
        "schema 99, this version reads 2; upgrade",
    ),
    "no schema": (forge(lambda h, _: h.pop("schema")), AdapterFormatError, "schema None"),
    "layers of the VAE": (
        forge(lambda h, t: rename(h, t, "text_encoder", "vae")),
        BaseModelMismatchError,
        "the adapter edits 'vae'",
    ),
    "layers that are not there": (
        forge(
            lambda h, t: rename(
                h,
                t,
                "text_encoder.text_model.encoder.layers.5",
                "text_encoder.text_model.encoder.layers.99",
            )
        ),
        BaseModelMismatchError,
        "has no layer",
    ),
    "fingerprints of another base": (
        forge(lambda h, _: h.update(base={"text_encoder": {"float32": "0"}})),
        BaseModelMismatchError,
        "allow_base_mismatch",
    ),
    "a Git-LFS pointer": (
        raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        AdapterFormatError,
        "LFS pointer",
    ),
    "a web page": (raw(b"<!DOCTYPE html><html></html>"), AdapterFormatError, "a web page"),
    "a web page without doctype": (
        raw(b"<html><head></head></html>"),
        AdapterFormatError,
        "a web page",
    ),
    "a pickle called safetensors": (
        lambda p: torch.save({"a": 1}, p),
        AdapterFormatError,
        UNREADABLE,
    ),
    "zeros": (raw(bytes(4096)), AdapterFormatError, UNREADABLE),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_is_not_what_it_should_be(target, untouched, no_star, tmp_path, case):
    damage, error, says = CASES[case]
    path = no_star.save_pretrained(tmp_path)
    damage(path)
    content = path.read_bytes()
    began = time.perf_counter()
    with pytest.raises(error, match=says) as caught:
        target.load_erasure_adapter(path, adapter_name="stranger")
    assert isinstance(caught.value, ErasureError) and time.perf_counter() - began < 5
    assert_same_bits(target, untouched)
    assert target.get_erasure_adapters() == {} and not any(
        m._forward_hooks for m in target.unet.modules()
    )
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == [WEIGHT_NAME]


def test_a_link_out_of_the_folder_is_refused_as_a_subfolder(no_star, tmp_path):
    no_star.save_pretrained(tmp_path / "outside")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "inside").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFileError, match="leads out"):
        ErasureAdapter.from_pretrained(tmp_path / "repo", subfolder="inside")


def test_a_link_at_the_target_of_a_save_is_replaced_and_not_followed(no_star, tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / WEIGHT_NAME).symlink_to(tmp_path / "victim")
    no_star.save_pretrained(tmp_path / "folder")
    assert (tmp_path / "victim").read_text() == "mine"


def mutant(data, rng):
    """One of many ways a file comes to harm."""
    data, at = bytearray(data), rng.randrange(len(data))
    kind = rng.randrange(7)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind == 2:
        del data[at : at + rng.choice((1, 4, 1000))]
    elif kind == 3:
        data[at:at] = rng.randbytes(rng.choice((1, 4, 1000)))
    elif kind == 4:
        data = data[:at]
    elif kind == 5:
        size = struct.unpack("<Q", data[:8])[0]
        where = rng.randrange(8, 8 + size)
        data[where] = rng.choice(b'{}[]",:0123456789 \\eE-')
    else:
        other = rng.randrange(len(data))
        moved = data[at : at + 64]
        data[at : at + 64] = data[other : other + 64]
        data[other : other + 64] = moved
    return bytes(data)


def fuzz(adapter, folder, count, seed):
    """How many mutants were refused, and how many read as exactly what was written."""
    path = adapter.save_pretrained(folder)
    original = adapter.to_bytes()
    rng = random.Random(seed)
    refused = same = 0
    for _ in range(count):
        path.write_bytes(mutant(original, rng))
        try:
            read = ErasureAdapter.from_pretrained(path)
        except ErasureError:
            refused += 1
        else:  # spaces between words of the table, say
            assert hashlib.sha256(read.to_bytes()).digest() == hashlib.sha256(original).digest()
            same += 1
    return refused, same


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_mutant_is_read_as_something_else(no_star, tmp_path, count):
    refused, same = fuzz(no_star, tmp_path, count, seed=0)
    assert refused + same == count and refused > 0.9 * count


@pytest.mark.slow
def test_reading_takes_less_than_twice_the_file(no_star, tmp_path):
    import subprocess
    import sys
    from dataclasses import replace

    size = 64 * 2**20
    big = replace(no_star, keys={"text_encoder.states": torch.ones(size // 4 // 1024, 1024)})
    path = big.save_pretrained(tmp_path)
    code = (
        "import resource, sys; from diffusers_erasepro import ErasureAdapter; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024; "
        "ErasureAdapter.from_pretrained; before = peak(); "
        "a = ErasureAdapter.from_pretrained(sys.argv[1]); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2 * path.stat().st_size + 64 * 2**20
