"""Encoders that diffusers or accelerate hung hooks into: erased as without them, or an error."""

import copy
import threading
from functools import cache

import accelerate.hooks
import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading, apply_layerwise_casting

import tiny
from conftest import assert_same_bits, bits
from diffusers_erasepro import ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.errors import AdapterStateError

CAPTIONS = tuple(glyphs.captions(60, seed=0))
SPEC = ErasureSpec((tiny.STAR,), preserve=CAPTIONS)
OPTIONS = {"layers": (0, -1), "max_edit_size": 1e3, "measure": False}
CPU = torch.device("cpu")


class Watching(ModelHook):
    """Counts its calls."""

    calls = 0

    def post_forward(self, module, output):
        Watching.calls += 1
        return output


class Louder(ModelHook):
    """Changes what a module computes."""

    def post_forward(self, module, output):
        if isinstance(output, tuple):
            return (1.5 * output[0], *output[1:])
        return 1.5 * output


class Locked(ModelHook):
    """Cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Around(ModelHook):
    """Calls the forward itself."""

    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs)


class Accelerated(accelerate.hooks.ModelHook):
    """A hook of accelerate's kind that does nothing."""


def add(module, hook, name="mine"):
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)


def on_root(pipe):
    add(pipe.text_encoder, Watching())


def on_every_block(pipe):
    for block in pipe.text_encoder.encoder.layers:
        add(block, Watching())


def on_every_linear(pipe):
    for module in [m for m in pipe.text_encoder.modules() if isinstance(m, torch.nn.Linear)]:
        add(module, Watching())


def three_on_one(pipe):
    for block in pipe.text_encoder.encoder.layers:
        add(block, Around(), "first")
        add(block.mlp.fc2, Watching(), "second")
        add(block.mlp.fc2, Around(), "third")
        add(block.mlp.fc2, Watching(), "fourth")


def one_removed_again(pipe):
    three_on_one(pipe)
    for block in pipe.text_encoder.encoder.layers:
        block.mlp.fc2._diffusers_hook.remove_hook("third")


def of_accelerate(pipe):
    for block in pipe.text_encoder.encoder.layers:
        accelerate.hooks.add_hook_to_module(block.mlp.fc2, Accelerated())


def of_both(pipe):
    on_every_linear(pipe)
    of_accelerate(pipe)


def of_both_the_other_way(pipe):
    of_accelerate(pipe)
    on_every_linear(pipe)


def group_by_block(pipe):
    apply_group_offloading(
        pipe.text_encoder, CPU, CPU, offload_type="block_level", num_blocks_per_group=1
    )


def group_by_leaf(pipe):
    apply_group_offloading(pipe.text_encoder, CPU, CPU, offload_type="leaf_level")


def group_and_watched(pipe):
    group_by_leaf(pipe)
    on_every_linear(pipe)


HUNG = [
    on_root,
    on_every_block,
    on_every_linear,
    three_on_one,
    one_removed_again,
    of_accelerate,
    of_both,
    of_both_the_other_way,
    group_by_block,
    group_by_leaf,
    group_and_watched,
]


def state_of_hooks(root):
    """What hangs where, as identities."""
    found = []
    for module in root.modules():
        registry = vars(module).get("_diffusers_hook")
        hooks = [] if registry is None else [(n, id(h)) for n, h in registry.hooks.items()]
        refs = [] if registry is None else [id(h.fn_ref) for h in registry.hooks.values()]
        own = [id(vars(module).get(name)) for name in ("forward", "_hf_hook", "_old_forward")]
        found.append((id(registry), hooks, refs, own))
        found.append((len(module._forward_hooks), len(module._forward_pre_hooks)))
    return found


@cache
def erased_plain(dtype, metric):
    """The pipeline without hooks, and its adapter."""
    plain = tiny.build("StableDiffusionPipeline").to(dtype)
    return plain, erase(plain, SPEC, metric=metric, **OPTIONS)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16],
)
@pytest.mark.parametrize("hang", HUNG)
@pytest.mark.parametrize("metric", ["covariance", "identity"])
def test_erased_as_without_the_hooks(hang, dtype, metric):
    plain, wanted = erased_plain(dtype, metric)
    pipe = erasable(copy.deepcopy(plain))
    hang(pipe)
    before = bits(pipe)
    hooks = state_of_hooks(pipe.text_encoder)
    if dtype != torch.float32 and hang.__name__.startswith("group"):
        with pytest.raises(AdapterStateError, match="GroupOffloadingHook"):
            erase(pipe, SPEC, metric=metric, **OPTIONS)
        assert state_of_hooks(pipe.text_encoder) == hooks
        return
    adapter = erase(pipe, SPEC, metric=metric, **OPTIONS)
    assert_same_bits(pipe, before)
    assert state_of_hooks(pipe.text_encoder) == hooks
    assert adapter.edits.keys() == wanted.edits.keys() and adapter.edits
    assert adapter.report.listed_residual < 1e-5
    for name, factors in wanted.edits.items():
        torch.testing.assert_close(
            adapter.edits[name].dense(), factors.dense(), atol=2e-3, rtol=2e-3
        )
    pipe.load_erasure_adapter(adapter)
    assert pipe.verify_erasure(raise_on_fail=True).ok
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_weights_that_a_hook_casts_are_taken_as_stored(dtype, storage):
    pipe = tiny.build("StableDiffusionPipeline").to(dtype)
    apply_layerwise_casting(pipe.text_encoder, storage, dtype, skip_modules_pattern=("norm",))
    before = bits(pipe)
    for metric in ("covariance", "identity"):
        report = erase(pipe, SPEC, metric=metric, **OPTIONS).report
        assert report.listed_residual < 1e-5 and report.layers
        assert_same_bits(pipe, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", ["encoder.layers.0.mlp.fc2", "encoder.layers.0.mlp"])
def test_a_hook_that_changes_an_edited_linear_is_named(dtype, path):
    pipe = tiny.build("StableDiffusionPipeline").to(dtype)
    add(pipe.text_encoder.get_submodule(path), Louder())
    before = bits(pipe)
    with pytest.raises(AdapterStateError, match="Louder"):
        erase(pipe, SPEC, **OPTIONS)
    assert_same_bits(pipe, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hook_that_changes_what_comes_before_is_part_of_the_encoder(dtype):
    pipe = erasable(tiny.build("StableDiffusionPipeline").to(dtype))
    add(pipe.text_encoder.encoder.layers[1].self_attn, Louder())
    pipe.load_erasure_adapter(erase(pipe, SPEC, **OPTIONS))
    assert pipe.verify_erasure(raise_on_fail=True).ok


def test_a_hook_that_cannot_be_copied_is_named():
    pipe = tiny.build("StableDiffusionPipeline").to(torch.float16)
    add(pipe.text_encoder.encoder.layers[1], Locked())
    with pytest.raises(AdapterStateError, match="Locked"):
        erase(pipe, SPEC, **OPTIONS)
    pipe.text_encoder.float()
    assert erase(pipe, SPEC, **OPTIONS).edits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_weights_on_disk_are_no_fine_tune(dtype, level, tmp_path):
    pipe = erasable(tiny.build("StableDiffusionPipeline").to(dtype))
    adapter = erase(pipe, SPEC, **OPTIONS)
    pipe.load_erasure_adapter(adapter)
    pipe.unload_erasure_adapters()
    apply_group_offloading(
        pipe.text_encoder,
        CPU,
        CPU,
        offload_type=level,
        num_blocks_per_group=1 if level == "block_level" else None,
        offload_to_disk_path=str(tmp_path),
    )
    for act in (lambda: erase(pipe, SPEC, **OPTIONS), lambda: pipe.load_erasure_adapter(adapter)):
        with pytest.raises(AdapterStateError, match=r"on disk.*GroupOffloadingHook"):
            act()


class Packed(torch.nn.Module):
    """A linear of Nunchaku's kind: packed integers and scales, no weight."""

    def __init__(self, linear):
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        scale = linear.weight.detach().float().abs().amax(1, keepdim=True) / 127
        packed = (linear.weight.detach().float() / scale).round().to(torch.int8)
        self.qweight = torch.nn.Parameter(packed, requires_grad=False)
        self.wscales = torch.nn.Parameter(scale.to(linear.weight.dtype), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        weight = self.qweight.to(x.dtype) * self.wscales
        return torch.nn.functional.linear(x, weight, self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("metric", ["covariance", "identity"])
def test_packed_linears_stay_or_are_named(dtype, metric):
    pipe = erasable(tiny.build("StableDiffusionPipeline").to(dtype))
    for block in pipe.text_encoder.encoder.layers:
        block.self_attn.q_proj = Packed(block.self_attn.q_proj)
    adapter = erase(pipe, SPEC, metric=metric, **OPTIONS)
    pipe.load_erasure_adapter(adapter)
    assert pipe.verify_erasure(raise_on_fail=True).ok
    pipe.unload_erasure_adapters()
    for block in pipe.text_encoder.encoder.layers:
        block.mlp.fc2 = Packed(block.mlp.fc2)
    with pytest.raises(AdapterStateError, match="Packed has no weight"):
        erase(pipe, SPEC, metric=metric, **OPTIONS)
