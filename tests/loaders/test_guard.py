"""Locks and required erasures: what is refused, and what opens again."""

import copy
import pickle

import pytest
from diffusers import StableDiffusionImg2ImgPipeline

from conftest import assert_same_bits, bits, draw
from diffusers_erasepro import erasable
from diffusers_erasepro.errors import ConceptSpecError, ErasureInactiveError, ErasureLockedError

TOKEN = "correct horse"


@pytest.fixture
def locked(pipe, no_star):
    pipe.load_erasure_adapter(no_star, adapter_name="no-star", locked=True, lock_token=TOKEN)
    return pipe


@pytest.mark.parametrize(
    "act",
    [
        lambda p: p.disable_erasure(),
        lambda p: p.set_erasure_adapters([]),
        lambda p: p.delete_erasure_adapters("no-star"),
        lambda p: p.unload_erasure_adapters(),
        lambda p: p.erasure_disabled().__enter__(),
        lambda p: setattr(p, "text_encoder", copy.deepcopy(p.text_encoder)),
        lambda p: p.register_modules(text_encoder=None),
        lambda p: p("a star", num_inference_steps=1, cross_attention_kwargs={"scale": 0.5}),
        lambda p: p.unlock_erasure("wrong token"),
    ],
)
def test_a_locked_erasure_cannot_be_switched_off_by_mistake(locked, act):
    before = bits(locked)
    for holder in (locked, copy.deepcopy(locked), pickle.loads(pickle.dumps(locked))):
        with pytest.raises(
            ErasureLockedError, match=r"'no-star' is locked; unlock_erasure\(token\) first"
        ):
            act(holder)
        assert_same_bits(holder, before)
        assert holder.get_erasure_adapters() == {"no-star": True}


def test_the_token_opens_the_lock_on_every_pipeline_that_shares_the_component(locked):
    sibling = erasable(StableDiffusionImg2ImgPipeline.from_pipe(locked))
    with pytest.raises(ErasureLockedError):
        sibling.disable_erasure()
    assert sibling.unlock_erasure(TOKEN) == ["no-star"]
    locked.disable_erasure()
    assert locked.unlock_erasure("anything at all") == []


def test_the_token_is_not_kept(locked):
    assert TOKEN.encode() not in pickle.dumps(locked.text_encoder._erasepro.locks)
    assert TOKEN not in repr(vars(locked.text_encoder._erasepro))


def test_a_lock_without_a_token_stays_shut_and_others_may_join_and_leave(pipe, no_star, no_cross):
    pipe.load_erasure_adapter(no_star, adapter_name="no-star", locked=True)
    pipe.load_erasure_adapter(no_cross, adapter_name="no-cross")
    pipe.set_erasure_adapters(["no-star"])
    pipe.delete_erasure_adapters("no-cross")
    assert pipe.verify_erasure().ok
    with pytest.raises(ErasureLockedError):
        pipe.unload_erasure_adapters()


@pytest.mark.parametrize("token", ["", "short", 5])
def test_a_token_that_guards_nothing_is_refused(pipe, no_star, token):
    with pytest.raises(ConceptSpecError, match="at least 8 characters"):
        pipe.load_erasure_adapter(no_star, locked=True, lock_token=token)
    assert pipe.get_erasure_adapters() == {}


def test_drawing_is_refused_while_a_required_erasure_is_off(pipe, no_star, no_cross):
    assert erasable(pipe, require_erasure=True) is pipe
    with pytest.raises(ErasureInactiveError, match="none is loaded; nothing was drawn"):
        draw(pipe, ["a star"])
    pipe.load_erasure_adapter(no_star, adapter_name="no-star")
    pipe.load_erasure_adapter(no_cross, adapter_name="no-cross")
    draw(pipe, ["a star"])
    pipe.set_erasure_adapters("no-star")
    with pytest.raises(ErasureInactiveError, match="'no-cross' is off"):
        draw(pipe, ["a star"])
    pipe.require_erasure("no-star")
    draw(pipe, ["a star"])
    pipe.require_erasure(False)
    pipe.disable_erasure()
    draw(pipe, ["a star"])


def test_a_component_replaced_under_an_erasure_stops_the_next_drawing(pipe, shipped, no_star):
    pipe.load_erasure_adapter(no_star, adapter_name="no-star")
    pipe.text_encoder = copy.deepcopy(shipped.text_encoder)
    with pytest.raises(
        ErasureInactiveError, match="text_encoder was replaced: the edit of adapter 'no-star'"
    ):
        draw(pipe, ["a star"])
    assert not pipe.verify_erasure().ok
    pipe.load_erasure_adapter(no_star, adapter_name="no-star")
    draw(pipe, ["a star"])
    pipe.text_encoder = copy.deepcopy(shipped.text_encoder)
    pipe.delete_erasure_adapters("no-star")
    draw(pipe, ["a star"])


def test_a_copy_of_a_component_with_its_erasure_on_may_take_its_place(pipe, no_star):
    pipe.load_erasure_adapter(no_star, adapter_name="no-star")
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    draw(pipe, ["a star"])
    assert pipe.verify_erasure().ok
    copied = copy.deepcopy(pipe.text_encoder)
    pipe.disable_erasure()
    pipe.text_encoder, off = copied, pipe.text_encoder
    draw(pipe, ["a star"])
    pipe.text_encoder = off
    with pytest.raises(ErasureInactiveError, match="text_encoder was replaced"):
        draw(pipe, ["a star"])


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", True])
def test_a_scale_that_is_no_finite_number_never_reaches_the_pipeline(pipe, scale):
    with pytest.raises(ConceptSpecError, match="scale must be a finite number"):
        pipe("a star", num_inference_steps=1, cross_attention_kwargs={"scale": scale})
