"""Erasures on a live pipeline: exact, in any order, wholly or not at all."""

import copy
import json
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from peft import LoraConfig

from conftest import assert_same_bits, bits, draw
from diffusers_erasepro import Concept, ErasureLoaderMixin, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.errors import (
    AdapterIntegrityError,
    AdapterStateError,
    BaseModelMismatchError,
    ConceptSpecError,
    ErasureVerificationError,
    UnknownFamilyError,
)
from routes import make_kit

make = partial(erase, measure=False)

FC2 = "encoder.layers.5.mlp.fc2"


def test_load_verify_toggle_restore(pipe, no_star, tmp_path):
    before = bits(pipe)
    assert (
        pipe.load_erasure_adapter(no_star.save_pretrained(tmp_path).parent, adapter_name="no-star")
        == "no-star"
    )
    on = bits(pipe)
    assert not torch.equal(on[f"text_encoder.{FC2}.weight"], before[f"text_encoder.{FC2}.weight"])
    assert pipe.verify_erasure(raise_on_fail=True).residual < 1e-5
    pipe.disable_erasure()
    assert pipe.get_erasure_adapters() == {"no-star": False}
    assert_same_bits(pipe, before)
    pipe.enable_erasure()
    assert pipe.get_erasure_adapters() == {"no-star": True}
    assert_same_bits(pipe, on)
    with pipe.erasure_disabled():
        assert_same_bits(pipe, before)
    assert_same_bits(pipe, on)
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)
    assert pipe.get_erasure_adapters() == {}


def test_a_thousand_toggles_end_where_they_began(pipe, no_star):
    before = bits(pipe)
    pipe.load_erasure_adapter(no_star)
    on = bits(pipe)
    for _ in range(500):
        pipe.disable_erasure()
        pipe.enable_erasure()
    assert_same_bits(pipe, on)
    pipe.disable_erasure()
    assert_same_bits(pipe, before)


def test_stacking_is_exact_and_does_not_depend_on_order(pipe, shipped, no_star, no_cross, no_style):
    others = erasable(copy.deepcopy(shipped))
    for p, order in (
        (pipe, (no_star, no_cross, no_style)),
        (others, (no_style, no_star, no_cross)),
    ):
        for adapter in order:
            p.load_erasure_adapter(
                adapter, adapter_name=adapter.spec.concepts[0].target.replace(" ", "-")
            )
            assert p.verify_erasure().residual < 1e-5
    assert_same_bits(pipe, bits(others))
    pipe.delete_erasure_adapters("cross")
    others.set_erasure_adapters(["star", "Mira-Voss"])
    assert_same_bits(pipe, bits(others))
    assert pipe.verify_erasure().ok and others.verify_erasure().ok
    others.set_erasure_adapters(["star"])
    pipe.set_erasure_adapters("star")
    single = erasable(copy.deepcopy(shipped))
    single.load_erasure_adapter(no_star)
    for p in (pipe, others):
        assert_same_bits(p, bits(single))


def test_enable_brings_back_what_was_on(pipe, no_star, no_cross):
    pipe.load_erasure_adapter(no_star, adapter_name="a")
    pipe.load_erasure_adapter(no_cross, adapter_name="b")
    pipe.set_erasure_adapters("b")
    pipe.disable_erasure()
    pipe.disable_erasure()
    pipe.enable_erasure()
    assert pipe.get_erasure_adapters() == {"a": False, "b": True}
    with pytest.raises(ZeroDivisionError), pipe.erasure_disabled():
        _ = 1 / 0
    assert pipe.get_erasure_adapters() == {"a": False, "b": True}


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (
            lambda p, s, c: p.load_erasure_adapter(c, adapter_name="first"),
            AdapterStateError,
            "'first' is in use",
        ),
        (
            lambda p, s, c: p.load_erasure_adapter(s, adapter_name="second"),
            AdapterStateError,
            "loaded already, as 'first'",
        ),
        (
            lambda p, s, c: p.load_erasure_adapter(c, adapter_name="a.b"),
            ConceptSpecError,
            "'a.b' must be",
        ),
        (
            lambda p, s, c: p.load_erasure_adapter(c, adapter_name=""),
            ConceptSpecError,
            "must be 1 to 64",
        ),
        (lambda p, s, c: p.load_erasure_adapter(c, adapter_name=5), ConceptSpecError, "5 must be"),
        (
            lambda p, s, c: p.set_erasure_adapters(["first", "nope"]),
            AdapterStateError,
            r"'nope' is loaded \(loaded: first\)",
        ),
        (lambda p, s, c: p.delete_erasure_adapters("nope"), AdapterStateError, "'nope'"),
        (
            lambda p, s, c: p.load_erasure_adapter("/nowhere/at/all"),
            ValueError,
            "no file or folder",
        ),
    ],
)
def test_a_failed_operation_changes_nothing(pipe, no_star, no_cross, act, error, says):
    pipe.load_erasure_adapter(no_star, adapter_name="first")
    before = bits(pipe)
    states = pipe.get_erasure_adapters()
    with pytest.raises(error, match=says):
        act(pipe, no_star, no_cross)
    assert_same_bits(pipe, before)
    assert pipe.get_erasure_adapters() == states


def test_adapters_that_contradict_are_named_and_nothing_changes(pipe, shipped, no_star, preserve):
    back = make(shipped, ErasureSpec((Concept("circle", "square"),), preserve=preserve))
    pipe.load_erasure_adapter(no_star)
    before = bits(pipe)
    with pytest.raises(ConceptSpecError, match="'star' -> 'circle' -> 'square'"):
        pipe.load_erasure_adapter(back)
    assert_same_bits(pipe, before)
    assert list(pipe.get_erasure_adapters()) == ["erasure_0"]


def test_another_base_is_refused_unless_solved_again(pipe, no_star):
    pipe.text_encoder.get_submodule(FC2).weight.data += 1e-3
    before = bits(pipe)
    with pytest.raises(BaseModelMismatchError, match="allow_base_mismatch"):
        pipe.load_erasure_adapter(no_star)
    assert_same_bits(pipe, before)
    pipe.load_erasure_adapter(no_star, allow_base_mismatch=True)
    assert pipe.verify_erasure().ok


def test_another_shape_is_refused(pipe, no_star):
    layer = pipe.text_encoder.get_submodule("encoder.layers.5.mlp")
    layer.fc2 = torch.nn.Linear(7, 9)
    with pytest.raises(
        BaseModelMismatchError, match=r"\(9, 7\), the adapter was made for \(128, 512\)"
    ):
        pipe.load_erasure_adapter(no_star)


def test_a_missing_encoder_is_an_error(pipe, no_star):
    pipe.text_encoder = None
    with pytest.raises(AdapterStateError, match="text_encoder is None"):
        pipe.load_erasure_adapter(no_star)


def test_a_weight_that_is_not_finite_is_never_written(pipe, no_star):
    from dataclasses import replace

    from diffusers_erasepro.linalg.low_rank import LowRank

    name, factors = next(iter(no_star.edits.items()))
    bad = replace(
        no_star, edits={**no_star.edits, name: LowRank(factors.B * float("nan"), factors.A)}
    )
    before = bits(pipe)
    with pytest.raises(AdapterIntegrityError, match="change by nan times"):
        pipe.load_erasure_adapter(bad)
    assert_same_bits(pipe, before)
    assert pipe.get_erasure_adapters() == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_pipelines_restore_their_bits(shipped, no_star, no_cross, dtype):
    pipe = erasable(copy.deepcopy(shipped).to(dtype))
    before = bits(pipe)
    pipe.load_erasure_adapter(no_star)
    pipe.load_erasure_adapter(no_cross)
    assert pipe.verify_erasure().ok
    pipe.disable_erasure()
    assert_same_bits(pipe, before)


def test_verify_fails_when_someone_else_changed_the_weights(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    weight = pipe.text_encoder.get_submodule(FC2).weight
    weight.data += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(
        weight
    )
    found = pipe.verify_erasure()
    assert not found.ok and found.residual > found.threshold
    assert any("text_encoder was changed" in note for note in found.uncovered)
    with pytest.raises(ErasureVerificationError, match="residual"):
        pipe.verify_erasure(raise_on_fail=True)


def test_a_change_by_someone_else_survives_our_toggle(pipe, no_star):
    weight = pipe.text_encoder.get_submodule(FC2).weight
    before = weight.detach().clone()
    pipe.load_erasure_adapter(no_star)
    theirs = 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
    weight.data += theirs
    pipe.disable_erasure()
    torch.testing.assert_close(weight.detach(), before + theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 2])
def test_loras_on_the_encoder_and_erasures_load_in_any_order(pipe, no_star, no_cross, count):
    adapters = dict([("star", no_star), ("cross", no_cross)][:count])
    pipe.load_erasure_adapters(adapters)
    alone = bits(pipe)
    pipe.unload_erasure_adapters()
    pipe.text_encoder.add_adapter(
        LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "fc2"])
    )
    pipe.load_erasure_adapters(adapters)
    base = {name.replace(".base_layer", ""): t for name, t in bits(pipe).items()}
    assert all(torch.equal(base[name], t) for name, t in alone.items())
    assert not pipe.verify_erasure().ok  # the states it was solved for have moved
    pipe.refit_erasure()
    assert pipe.verify_erasure(raise_on_fail=True).residual < 1e-5


def test_verify_says_what_is_off_and_what_no_edit_covers(pipe, no_star):
    assert not pipe.verify_erasure().ok
    pipe.load_erasure_adapter(no_star, adapter_name="no-star")
    assert any("prompt_embeds" in note for note in pipe.verify_erasure().uncovered)
    pipe.disable_erasure()
    assert not pipe.verify_erasure().ok
    assert "adapter 'no-star' is off" in pipe.verify_erasure().uncovered


@pytest.mark.parametrize(("layers", "listed"), [((0, -1), True), (("kv",), False)])
def test_verify_says_when_the_last_call_was_given_embeddings(
    pipe, shipped, preserve, layers, listed
):
    spec = ErasureSpec((Concept("star", "circle"),), preserve=preserve)
    pipe.load_erasure_adapter(make(shipped, spec, layers=layers))

    def said():
        return any("last call was given" in note for note in pipe.verify_erasure().uncovered)

    def call(**prompt):
        pipe(**prompt, num_inference_steps=1, guidance_scale=1.0, output_type="latent")

    call(prompt="a star")
    assert not said()
    foreign, _ = shipped.encode_prompt("a star", "cpu", 1, False)
    call(prompt_embeds=foreign)
    assert said() is listed
    call(prompt="a star")
    assert not said()


def test_kv_edits_hold_for_states_made_elsewhere(pipe, shipped, preserve):
    adapter = make(
        shipped, ErasureSpec((Concept("star", "circle"),), preserve=preserve), layers=("kv",)
    )
    before = bits(pipe)
    pipe.load_erasure_adapter(adapter)
    found = pipe.verify_erasure(raise_on_fail=True)
    assert set(found.residuals) == {"unet"} and not any(
        "prompt_embeds" in n for n in found.uncovered
    )
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


def test_a_style_lora_does_not_switch_the_erasure_off(pipe, shipped, no_star, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = copy.deepcopy(shipped.unet)
    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_k", "to_v"]))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(unet)
    )
    pipe.load_erasure_adapter(no_star)
    on = bits(pipe)["text_encoder." + FC2 + ".weight"]
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    assert pipe.verify_erasure().ok
    pipe.disable_lora()
    pipe.unload_lora_weights()
    assert pipe.verify_erasure().ok
    assert torch.equal(bits(pipe)["text_encoder." + FC2 + ".weight"], on)


def test_refit_closes_the_residual_on_a_changed_base(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    weight = pipe.text_encoder.get_submodule("encoder.layers.3.mlp.fc1").weight
    weight.data += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(
        weight
    )
    assert not pipe.verify_erasure().ok
    pipe.refit_erasure()
    assert pipe.verify_erasure().residual < 1e-5


def test_siblings_share_the_erasure_and_its_switches(pipe, no_star):
    pipe.load_erasure_adapter(no_star, adapter_name="no-star")
    sibling = erasable(StableDiffusionImg2ImgPipeline.from_pipe(pipe))
    assert sibling.get_erasure_adapters() == {"no-star": True}
    sibling.disable_erasure()
    assert pipe.get_erasure_adapters() == {"no-star": False}
    assert isinstance(AutoPipelineForImage2Image.from_pipe(pipe), StableDiffusionImg2ImgPipeline)


def test_a_replaced_component_loses_edit_and_registry_together(pipe, shipped, no_star):
    pipe.load_erasure_adapter(no_star)
    pipe.text_encoder = copy.deepcopy(shipped.text_encoder)
    assert pipe.get_erasure_adapters() == {} and not pipe.verify_erasure().ok


def test_erasable_keeps_the_stock_class_in_all_but_methods(pipe, tmp_path):
    assert type(pipe).__name__ == "StableDiffusionPipeline" and isinstance(pipe, ErasureLoaderMixin)
    assert erasable(pipe) is pipe and isinstance(pipe, StableDiffusionPipeline)
    assert not isinstance(glyphs.load_pipeline(), ErasureLoaderMixin)
    pipe.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is StableDiffusionPipeline
    with pytest.raises(UnknownFamilyError):
        erasable(object())


def test_copies_keep_the_erasure_and_can_be_switched_apart(pipe, no_star):
    pipe.load_erasure_adapter(no_star, adapter_name="no-star")
    for twin in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert twin.verify_erasure().ok and type(twin) is type(pipe)
        twin.disable_erasure()
        assert pipe.get_erasure_adapters() == {"no-star": True}


def test_the_erased_pipeline_draws_another_picture_and_off_the_same(pipe, no_star):
    prompts = ["a red star on snow"]
    base = draw(pipe, prompts)
    pipe.load_erasure_adapter(no_star)
    assert (draw(pipe, prompts) - base).abs().max() > 0.05
    with pipe.erasure_disabled():
        assert torch.equal(draw(pipe, prompts), base)


def test_refit_on_the_base_gives_the_first_bits(pipe, no_star, no_cross):
    for adapter in (no_star, no_cross):
        pipe.load_erasure_adapter(adapter)
        first = bits(pipe)
        pipe.refit_erasure()
        assert_same_bits(pipe, first)


def test_refit_under_a_style_on_the_readers_closes_the_residual(pipe, shipped, preserve, tmp_path):
    kit = make_kit(shipped, tmp_path, ("kv",), preserve)
    pipe.load_erasure_adapter(kit.adapter)
    pipe.load_lora_weights(kit.lora("kv"), adapter_name="style")
    found = pipe.verify_erasure()
    assert not found.ok and "LoRA 'style' is active in unet" in found.uncovered
    pipe.refit_erasure()
    assert pipe.verify_erasure().ok


def test_verify_measures_prompts_of_ones_own_and_what_a_call_receives(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    found = pipe.verify_erasure(["a Star over the sea"], images=True)
    assert (
        found.ok
        and set(found.residuals) == {"text_encoder", "call"}
        and found.residuals["call"] < 1e-5
    )
    (residual,) = found.prompts.values()
    assert 1e-5 < residual < 0.5
    with pytest.raises(ConceptSpecError, match=r"names none of the erased concepts \('star'\)"):
        pipe.verify_erasure("a house")


def test_sampled_layers_tell_an_edit_from_none(pipe, shipped, preserve):
    adapter = make(
        shipped, ErasureSpec((Concept("star", "circle"),), preserve=preserve), layers=(0, "kv")
    )
    pipe.load_erasure_adapter(adapter)
    found = pipe.verify_erasure(sample=100)
    assert found.ok and len(found.residuals) == len(adapter.edits)
    name = next(n for n in found.residuals if n.startswith("unet"))
    pipe.unet.get_submodule(name.removeprefix("unet.")).weight.data.copy_(
        shipped.unet.get_submodule(name.removeprefix("unet.")).weight
    )
    found = pipe.verify_erasure(sample=100)
    assert not found.ok and found.residuals[name] == pytest.approx(1.0, rel=1e-3)


def test_tied_weights_are_not_edited(pipe, no_star):
    pipe.text_encoder.get_submodule(
        "encoder.layers.4.mlp.fc2"
    ).weight = pipe.text_encoder.get_submodule(FC2).weight
    with pytest.raises(AdapterStateError, match="share one weight; untie them"):
        pipe.load_erasure_adapter(no_star, allow_base_mismatch=True)


def test_a_weight_on_the_meta_device_is_an_error(pipe, no_star):
    pipe.text_encoder.to("meta")
    with pytest.raises(AdapterStateError, match="meta device"):
        pipe.load_erasure_adapter(no_star)


def test_a_component_that_was_deleted_is_an_error(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    del pipe.text_encoder
    with pytest.raises(AdapterStateError, match="text_encoder is None"):
        pipe.load_erasure_adapter(no_star, adapter_name="again")


def test_a_saved_erasure_says_so_and_is_not_loaded_twice(pipe, no_star, tmp_path):
    pipe.load_erasure_adapter(no_star)
    pipe.save_pretrained(tmp_path)
    (edit,) = json.loads((tmp_path / "erasure.json").read_text()).values()
    assert edit["components"] == ["text_encoder"] and edit["spec"] == no_star.spec.to_dict()
    again = erasable(
        StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None).to(torch.float32)
    )
    with pytest.raises(BaseModelMismatchError, match=r"hold the erasure .* already"):
        again.load_erasure_adapter(no_star)
    pipe.disable_erasure()
    pipe.save_pretrained(tmp_path)
    assert not (tmp_path / "erasure.json").exists()


@pytest.mark.parametrize(
    ("layers", "part", "style"),
    [((0, -1), "text_encoder", "text"), (("kv",), "unet", "kv"), (("kv",), "unet", "unet")],
)
def test_a_pipeline_is_not_saved_while_an_erased_component_has_a_lora(
    pipe, shipped, preserve, tmp_path, layers, part, style
):
    kit = make_kit(shipped, tmp_path / "kit", layers, preserve)
    pipe.load_erasure_adapter(kit.adapter)
    pipe.load_lora_weights(kit.lora(style), adapter_name="style")
    for hide in (
        lambda: None,
        pipe.disable_lora,
        pipe.fuse_lora,
    ):  # the layers are there, whether they act or not
        hide()
        with pytest.raises(
            AdapterStateError, match=f"{part} is erased and has LoRA layers .* unload_lora_weights"
        ):
            pipe.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")


def test_a_lora_on_a_component_that_is_not_erased_is_diffusers_business(
    pipe, shipped, preserve, tmp_path
):
    kit = make_kit(shipped, tmp_path / "kit", (0, -1), preserve)
    pipe.load_erasure_adapter(kit.adapter)
    pipe.load_lora_weights(kit.lora("unet"), adapter_name="style")
    pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "erasure.json").exists()


def test_several_are_loaded_at_once_or_none(pipe, shipped, no_star, no_cross):
    before = bits(pipe)
    with pytest.raises(ConceptSpecError):
        pipe.load_erasure_adapters({"a": no_star, "b.c": no_cross})
    assert_same_bits(pipe, before)
    assert (
        pipe.load_erasure_adapters({"a": no_star, "b": no_cross}) == ("a", "b")
        and pipe.verify_erasure().ok
    )
    apart = erasable(copy.deepcopy(shipped))
    apart.load_erasure_adapter(no_cross)
    apart.load_erasure_adapter(no_star)
    assert_same_bits(apart, bits(pipe))


@pytest.mark.slow
def test_two_hundred_clean_configurations_raise_no_alarm(shipped, preserve):
    concepts = [
        Concept(w, "circle")
        for w in ("star", "cross", "ring", "heart", "arrow", "house", "tree", "dog")
    ]
    checked = 0
    for layers in ((0, -1), ("kv",), (0, "kv")):
        for concept in concepts:
            adapter = make(shipped, ErasureSpec((concept,), preserve=preserve), layers=layers)
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                plain = copy.deepcopy(shipped).to(dtype)
                for change in (
                    lambda p: None,
                    lambda p: p.fuse_qkv_projections(vae=False),
                    copy.deepcopy,
                ):
                    p = erasable(copy.deepcopy(plain))
                    p.load_erasure_adapter(adapter)
                    p = change(p) or p
                    found = p.verify_erasure()
                    assert found.ok and p.verify_erasure(sample=100).ok, (
                        concept,
                        layers,
                        dtype,
                        found,
                    )
                    checked += 1
    assert checked >= 200


def test_a_large_edit_of_an_encoder_is_allowed_no_more_than_a_small_one(shipped, no_style):
    """Rounding moves states by as much whatever edits them, so a part that lacks is no rounding."""
    assert max(layer.edit_size for layer in no_style.report.layers) > 2
    pipe = erasable(copy.deepcopy(shipped).to(torch.bfloat16))
    pipe.load_erasure_adapter(no_style)
    found = pipe.verify_erasure()
    assert found.ok and found.threshold == 2e-2 and found.residual < 1e-2
    pipe.unload_erasure_adapters()
    name = list(no_style.edits)[-1]
    weak = replace(no_style.edits[name], B=0.96 * no_style.edits[name].B)
    with pytest.raises(AdapterIntegrityError, match=r"residual .* at most 2e-02"):
        pipe.load_erasure_adapter(replace(no_style, edits={**no_style.edits, name: weak}))


def test_a_large_edit_in_sixteen_bits_is_no_alarm_and_a_broken_one_is(shipped, preserve):
    """ "house" is no word of this world.

    Its edit is three times as large as K/V, and so is what rounding makes of it.
    """
    adapter = make(
        shipped, ErasureSpec((Concept("house", "circle"),), preserve=preserve), layers="kv"
    )
    pipe = erasable(copy.deepcopy(shipped).to(torch.bfloat16))
    pipe.load_erasure_adapter(adapter)
    found = pipe.verify_erasure()
    assert found.ok and 0.02 < found.threshold < 0.1
    pipe.unload_erasure_adapters()
    name = max(adapter.edits, key=lambda n: adapter.edits[n].B.norm())
    weak = replace(adapter.edits[name], B=0.85 * adapter.edits[name].B)
    with pytest.raises(AdapterIntegrityError, match="residual"):
        pipe.load_erasure_adapter(replace(adapter, edits={**adapter.edits, name: weak}))
