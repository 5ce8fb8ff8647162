"""Real vocabularies: ids of known prompts, truncation, and where the names of all specs are."""

import base64
import copy
import gzip
import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
import vocabularies
from transformers.convert_slow_tokenizer import bytes_to_unicode
from vocabularies import TOKENIZERS, VocabularyError, load_tokenizer

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.config.kinds import find_kind, known_kinds
from diffusers_erasepro.config.plan import Alignment
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.prompts.alignment import rows_of, sort_pairs
from diffusers_erasepro.prompts.misspelt import notes_on_misspelt
from diffusers_erasepro.prompts.pairs import Pair, Prompt, pairs_of
from diffusers_erasepro.prompts.tokens import token_ids
from diffusers_erasepro.prompts.unknown_tokens import unknown_ids

ROOT = Path(__file__).parent.parent.parent
SPECS = sorted((ROOT / "adapters/specs").glob("*/spec.toml"))
LIMITS = (77, 256, 512)
NO_NETWORK = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}

CAT = "a photo of a cat"
KNOWN = {
    ("clip", CAT): [49406, 320, 1125, 539, 320, 2368, 49407],
    ("clip", ""): [49406, 49407],
    ("clip", "a painting by Van Gogh"): [49406, 320, 3086, 638, 2451, 19697, 49407],
    ("t5", CAT): [3, 9, 1202, 13, 3, 9, 1712, 1],
    ("t5", ""): [1],
    ("qwen3", CAT): [64, 6548, 315, 264, 8251],
    ("qwen3", "皮卡丘"): [99888, 99603, 105697],
    ("bert", CAT): [101, 1037, 6302, 1997, 1037, 4937, 102],
}


@cache
def load(name):
    try:
        return load_tokenizer(name)
    except VocabularyError as error:
        pytest.skip(str(error))


def limited(name, length):
    tokenizer = copy.copy(load(name))
    tokenizer.model_max_length = length
    return tokenizer


@pytest.mark.parametrize("name, prompt", KNOWN)
def test_known_prompts_have_their_ids(name, prompt):
    assert load(name)(prompt).input_ids == KNOWN[name, prompt]


def test_clip_has_no_case_and_pads_with_its_end():
    clip = load("clip")
    assert clip("A Photo OF a CAT").input_ids == KNOWN["clip", CAT]
    assert len(clip) == 49408
    row = token_ids(clip, [CAT])[0].tolist()
    assert row == [*KNOWN["clip", CAT], *[49407] * 70]


@pytest.mark.parametrize("name", ["Frida Kahlo", "Henri Matisse", "Thanos", "Shrek"])
def test_names_that_clip_knows_are_not_taken_for_misspelt(name):
    assert notes_on_misspelt([Concept(name)], [load("clip")]) == []


@pytest.mark.parametrize(
    "typed, meant", [("Rembrant", "rembrandt"), ("Van Gohg", "gogh"), ("catt", "cat")]
)
def test_misspelt_names_are_set_beside_those_that_clip_knows(typed, meant):
    (note,) = notes_on_misspelt([Concept(typed)], [load("clip")])
    assert repr(meant) in note


def test_the_tokens_of_qwen_are_those_of_qwen3():
    qwen3 = load("qwen3").backend_tokenizer
    file = vocabularies.default_cache() / "qwen/qwen.tiktoken"
    if not file.exists():
        pytest.skip(f"`{vocabularies.COMMAND}` fetches it")
    letters = bytes_to_unicode()
    ids = {}
    for line in file.read_bytes().splitlines():
        token, rank = line.split()
        ids["".join(letters[byte] for byte in base64.b64decode(token))] = int(rank)
    assert len(ids) == 151_643
    assert ids == qwen3.get_vocab(with_added_tokens=False)


@pytest.mark.parametrize("name, word", [("t5", "猫"), ("t5", "Ж"), ("bert", "喵")])
def test_what_these_do_not_know_is_refused(name, word):
    tokenizer = load(name)
    assert unknown_ids(tokenizer) & {*tokenizer(word).input_ids}
    pair = Pair(Prompt.of("a {}", word), Prompt.of("a {}", "dog"))
    with pytest.raises(ConceptSpecError, match=r"does not know"):
        rows_of([pair], tokenizer, Alignment())


@pytest.mark.parametrize("word", ["猫", "Ж", "🔫", "ß"])
def test_byte_level_vocabularies_have_a_token_for_everything(word):
    for name in ("clip", "qwen3"):
        tokenizer = load(name)
        assert not unknown_ids(tokenizer) & {*tokenizer(word, add_special_tokens=False).input_ids}


@pytest.mark.parametrize("length", LIMITS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_name_is_found_up_to_the_limit_and_not_beyond(name, length):
    tokenizer = limited(name, length)
    special = len(tokenizer("").input_ids)
    name_tokens = tokenizer("red cat", add_special_tokens=False).input_ids[1:]
    room = length - special - len(name_tokens)

    def rows(words):
        template = "red " * words + "{}"
        pair = Pair(Prompt.of(template, "cat"), Prompt.of(template, "dog"))
        return rows_of([pair], tokenizer, Alignment())

    found = rows(room)
    assert found.target_ids.shape == (1, length)
    assert found.target_ids[0, found.target_at[0]] == name_tokens[-1]
    with pytest.raises(ConceptSpecError, match=rf"tokenizer allows {length}"):
        rows(room + 1)


@pytest.mark.parametrize("length", LIMITS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_follows_a_name_may_be_cut(name, length):
    tokenizer = limited(name, length)
    template = "a {} on a chair" + " in a garden" * length
    pair = Pair(Prompt.of(template, "Van Gogh"), Prompt.of(template, "painter"))
    found = rows_of([pair], tokenizer, Alignment())
    assert found.target_ids.shape == (1, length)
    assert int(found.target_at.max()) == length - 1
    last = tokenizer("a Van Gogh", add_special_tokens=False).input_ids[-1]
    assert found.target_ids[0, found.target_at[0]] == last


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_last_tokens_of_targets_meet_those_of_anchors_in_every_spec(name):
    """The tokenizer's own `char_to_token` says where they are."""
    tokenizer = limited(name, 77 if name == "clip" else 256)
    assert SPECS
    for file in SPECS:
        spec = ErasureSpec.from_toml(file.read_text(encoding="utf-8"))
        pairs = [*pairs_of(spec.concepts, "exact"), *pairs_of(spec.concepts, "soft", most=1)]
        found = rows_of(pairs, tokenizer, Alignment())
        for i, pair in enumerate(pairs):
            at = int((found.row == i).nonzero()[0])
            assert found.target_at[at] == last_token(tokenizer, pair.target), (file, pair)
            if pair.anchor.start < pair.anchor.stop:
                assert found.anchor_at[at] == last_token(tokenizer, pair.anchor), (file, pair)
        assert not torch.equal(found.target_ids, found.anchor_ids)


@pytest.mark.parametrize("name", known_kinds())
def test_no_shipped_phrase_is_cut_by_clip_before_it_comes_to_the_name(name):
    """Ends of long ones may be cut, of which T5 and Qwen3 read more."""
    kind = find_kind(name)
    concept = Concept("Chancellor Angela Merkel-Obama", "a woman", kind)
    for which in ("soft", "held_out"):
        pairs = pairs_of([concept], which)
        assert not sort_pairs(pairs, load("clip")).unread


def last_token(tokenizer, prompt):
    return tokenizer(prompt.text).char_to_token(prompt.stop - 1)


def run(cache, **environment):
    command = [sys.executable, str(ROOT / "tools/vocabularies.py"), "--cache", str(cache)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | NO_NETWORK | environment
    )


def test_without_a_network_every_package_has_one_line(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == len(vocabularies.PACKAGES)
    assert all("was not downloaded" in line for line in lines)
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(VocabularyError, match=r"tools/vocabularies\.py` fetches it"):
        load_tokenizer("clip", tmp_path)


def test_what_is_in_the_cache_is_not_fetched_again():
    for name in TOKENIZERS:
        load(name)
    done = run(vocabularies.default_cache())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_that_pip_finds_ends_in_the_cache(tmp_path):
    load("clip")
    name = "clip/merges.txt"
    whole = (vocabularies.default_cache() / name).read_bytes()
    package = "open_clip_torch==3.3.0"
    [inside] = vocabularies.PACKAGES[package]
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "open_clip_torch-3.3.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(inside, gzip.compress(whole, 1))
        about = "open_clip_torch-3.3.0.dist-info/"
        wheel.writestr(
            about + "METADATA", "Metadata-Version: 2.1\nName: open_clip_torch\nVersion: 3.3.0\n"
        )
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(about + "RECORD", "")
    done = run(tmp_path / "cache", PIP_FIND_LINKS=str(wheels))
    assert package not in done.stderr
    assert (tmp_path / "cache" / name).read_bytes() == whole


def test_a_damaged_wheel_or_file_is_named(tmp_path):
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    wheel.write_bytes(b"PK\x03\x04 half a wheel")
    with pytest.raises(VocabularyError, match=r"some-1\.0-py3-none-any\.whl .*is damaged"):
        vocabularies._read_wheel(wheel, "vocabulary.json")
    load("clip")
    whole = (vocabularies.default_cache() / "clip/merges.txt").read_bytes()
    damaged = tmp_path / "clip/merges.txt"
    damaged.parent.mkdir()
    damaged.write_bytes(whole[:-1])
    with pytest.raises(VocabularyError, match=r"clip/merges\.txt is missing or damaged"):
        load_tokenizer("clip", tmp_path)
