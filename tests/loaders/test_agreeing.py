"""Erasures that agree on a concept are solved together; it is erased once."""

import copy
import itertools
from dataclasses import replace

import pytest

import tiny
from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, baselines, erasable, erase
from diffusers_erasepro.errors import AdapterStateError, ConceptSpecError
from diffusers_erasepro.loaders.stacking import joint_spec, merge_concept

OPTIONS = {"metric": "identity", "max_edit_size": 1e3, "measure": False}
A = Concept("star", "circle", ("a {}",), ())
SIBLINGS = {
    "the same": A,
    "other templates": Concept("star", "circle", ("a photo of {}",), ("a big {}",)),
    "other case": Concept("Star", "Circle", ("a {}",), ()),
    "a synonym more": Concept("star", "circle", ("a {}",), (), synonyms=("bolt",)),
    "a synonym there": Concept("bolt", "circle", ("a {}",), (), synonyms=("star",)),
}


@pytest.fixture(scope="module")
def base():
    return tiny.build("StableDiffusionPipeline")


def made(base, *concepts, **options):
    return erase(base, ErasureSpec(concepts, preserve=tiny.PRESERVE), **OPTIONS, **options)


@pytest.mark.parametrize("sibling", SIBLINGS)
def test_two_that_agree_are_combined_in_any_order(base, sibling):
    other = SIBLINGS[sibling]
    some = made(base, A, Concept("cross", "square", ("a {}",), ()), layers=(0, -1))
    others = made(base, other, Concept("ring", "heart", ("a {}",), ()), layers=(0, -1))
    found = []
    for pair in itertools.permutations((some, others)):
        live = erasable(copy.deepcopy(base))
        before = bits(live)
        for adapter in pair:
            live.load_erasure_adapter(adapter)
        assert live.verify_erasure(raise_on_fail=True).ok
        found.append(bits(live))
        live.delete_erasure_adapters("erasure_0")
        assert live.verify_erasure(raise_on_fail=True).ok
        live.unload_erasure_adapters()
        assert_same_bits(live, before)
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
    targets = [concept.target.lower() for concept in joint_spec([some, others]).concepts]
    assert len(targets) == len({*targets})
    for adapter in (some, others):
        for concept in adapter.spec.concepts:
            assert concept.target.lower() in targets


def test_what_each_file_keeps_is_kept(base):
    """Refitting one file solves what it was made for."""
    some = ErasureSpec(
        (A,), preserve=("a red door",), near=("a starling", "a bolted door"), everyday=True
    )
    others = ErasureSpec((Concept("hat", "cap", ("a {}",), ()),), near=("a hatch",))
    one = made(base, A, layers=(0,))
    alone, beside = (replace(one, spec=spec) for spec in (some, others))
    assert joint_spec([alone]) == some
    assert joint_spec([beside]) == others
    for both in (joint_spec([alone, beside]), joint_spec([beside, alone])):
        assert both.preserve == some.preserve and both.everyday
        assert {*both.near} == {"a starling", "a bolted door", "a hatch"}
    given = replace(alone, spec=replace(some, everyday=False))
    assert joint_spec([given, beside]).everyday  # who gives no captions keeps the shipped ones
    door = replace(beside, spec=ErasureSpec((Concept("bolted door", "gate", ("a {}",), ()),)))
    assert joint_spec([alone, door]).near == ("a starling",)


def test_what_is_said_of_both_counts():
    a = Concept("star", "circle", ("a {}", "b {}"), synonyms=("bolt",), near=("a starry sky",))
    b = Concept("star", "circle", ("a {}", "c {}"), synonyms=("drop",), names={"de": ["Stern"]})
    (one,) = merge_concept(merge_concept([], a), b)
    assert (one.exact, one.soft) == (("a {}",), ("b {}", "c {}"))
    assert one.synonyms == ("bolt", "drop") and one.near == a.near and one.names == b.names


def test_two_that_do_not_agree_still_are_refused(base):
    live = erasable(copy.deepcopy(base))
    live.load_erasure_adapter(made(base, A))
    with pytest.raises(ConceptSpecError, match="erased twice, to"):
        live.load_erasure_adapter(made(base, Concept("star", "square", ("a {}",), ())))


def test_what_can_only_be_added_is_not_added_twice(base):
    spec = ErasureSpec((A,), preserve=tiny.PRESERVE)
    live = erasable(copy.deepcopy(base))
    live.load_erasure_adapter(baselines.uce(base, spec))
    before = bits(live)
    with pytest.raises(AdapterStateError, match=r"'star' is erased by two .* Switch one off"):
        live.load_erasure_adapter(made(base, A))
    assert_same_bits(live, before)
