"""Long lists in a header: stored once and compressed, read back whole, refused where too long."""

import base64
import json
import random
import zlib
from dataclasses import replace

import pytest

import diffusers_erasepro.adapters.header as headers
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erase
from diffusers_erasepro.adapters.hub import WEIGHT_NAME
from diffusers_erasepro.config.plan import BLOCKS, Plan
from diffusers_erasepro.errors import AdapterFormatError, AdapterIntegrityError


def captions(count, letters="abcdefghijklmnopqrstuvwxyz ", length=700):
    rng = random.Random(0)
    return tuple("".join(rng.choices(letters, k=length)) for _ in range(count))


def entry_of(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return size, json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["erasepro"])


def rewrite(path, change):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + size])
    entry = json.loads(table["__metadata__"]["erasepro"])
    change(entry)
    table["__metadata__"]["erasepro"] = json.dumps(entry)
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


CJK = "".join(map(chr, range(0x4E00, 0x5000)))


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(
            tuple(f"a photo of thing {i} on a table, number {i * i}" for i in range(12_000)),
            marks=pytest.mark.slow,
        ),
        captions(400, length=2_000),
        captions(400, CJK),
    ],
    ids=["short captions", "long captions", "not ASCII"],
)
def test_a_long_list_is_read_back(no_star, tmp_path, kept):
    made = replace(no_star, spec=replace(no_star.spec, preserve=kept))
    path = made.save_pretrained(tmp_path)
    assert entry_of(path)[0] < headers.HEADER_LIMIT
    read = ErasureAdapter.from_pretrained(tmp_path)
    assert read.spec == made.spec and read.digest == made.digest
    assert read.to_bytes() == path.read_bytes()
    stored = headers.read_header(path)
    assert json.dumps(stored, sort_keys=True) == json.dumps(made.header(), sort_keys=True)


@pytest.mark.slow
def test_so_are_many_concepts(no_star, tmp_path):
    concepts = tuple(Concept(f"thing {i}", "object", templates=("a {}",)) for i in range(10_000))
    spec = ErasureSpec(concepts, preserve=())
    made = replace(no_star, spec=spec, plan=Plan.uniform(concepts, BLOCKS))
    made.save_pretrained(tmp_path)
    assert ErasureAdapter.from_pretrained(tmp_path).spec == spec


def test_a_short_list_stays_as_it_was(no_star):
    assert headers.pack_entries(no_star.header()) == no_star.header()


@pytest.mark.slow
def test_too_long_a_list_is_refused_before_anything_is_computed(
    shipped, no_star, tmp_path, monkeypatch
):
    monkeypatch.setattr(headers, "HEADER_LIMIT", headers.ROOM_FOR_TENSORS + 2**20)
    letters = "".join(map(chr, range(0x4E00, 0x9000)))
    spec = ErasureSpec((Concept("star", "circle"),), preserve=captions(1_000, letters))
    match = r"spec: \d+ bytes when compressed, at most \d+ .* fewer or shorter captions"
    with pytest.raises(AdapterFormatError, match=match):
        erase(shipped, spec)
    no_star.save_pretrained(tmp_path)
    before = (tmp_path / WEIGHT_NAME).read_bytes()
    with pytest.raises(AdapterFormatError, match="nothing was saved"):
        replace(no_star, spec=spec).save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [WEIGHT_NAME]
    assert (tmp_path / WEIGHT_NAME).read_bytes() == before


def bomb(entry):
    packed = zlib.compress(b"[" + b"0," * headers.UNPACKED_LIMIT + b"0]", 9)
    entry["spec"] = {"zlib": base64.b64encode(packed).decode()}


def cut(entry):
    entry["spec"] = {"zlib": entry["spec"]["zlib"][:-400]}


def no_code(entry):
    entry["spec"] = {"zlib": "no base64 !"}


def other_bits(entry):
    packed = zlib.compress(b'{"concepts": [{"target": "cross"}]}')
    entry["spec"] = {"zlib": base64.b64encode(packed).decode()}


def no_json(entry):
    entry["spec"] = {"zlib": base64.b64encode(zlib.compress(b"[" * 10**6)).decode()}


@pytest.mark.parametrize("damage", [bomb, cut, no_code, other_bits, no_json])
def test_a_damaged_list_is_named(no_star, tmp_path, damage):
    made = replace(no_star, spec=replace(no_star.spec, preserve=captions(1_000)))
    path = made.save_pretrained(tmp_path)
    rewrite(path, damage)
    with pytest.raises(AdapterIntegrityError, match="header"):
        ErasureAdapter.from_pretrained(tmp_path)
