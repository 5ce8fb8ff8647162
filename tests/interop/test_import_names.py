"""What stock diffusers reads, import reads, with the same weights in the end."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.errors import AdapterFormatError
from diffusers_erasepro.interop.lora import import_lora
from tiny import build

SPEC = ErasureSpec((Concept("star", "circle"),), preserve=())
RANK = 3


def factors(linear):
    draw = torch.Generator().manual_seed(linear.in_features)
    down = torch.randn(RANK, linear.in_features, generator=draw)
    return down, torch.randn(linear.out_features, RANK, generator=draw) / 100


def name_pairs(root, paths, spell, ends=("lora_A.weight", "lora_B.weight"), alpha=None):
    """The tensors of a file; `spell` makes the file's name of a module's path."""
    tensors = {}
    for path in paths:
        for end, value in zip(ends, factors(root.get_submodule(path)), strict=True):
            tensors[f"{spell(path)}.{end}"] = value.contiguous()
        if alpha is not None:
            tensors[f"{spell(path)}.alpha"] = torch.tensor(float(alpha))
    return tensors


def readers(root, ends=("attn2.to_k", "attn2.to_v")):
    return [name for name, _ in root.named_modules() if name.endswith(ends)]


def assert_imports(pipe, component, tensors, path, scale=1.0, metadata=None):
    """The file changes the component's layers by `scale` times what `factors` says."""
    save_file(tensors, path, metadata=metadata)
    adapter = import_lora(path, pipe, SPEC)
    root = getattr(pipe, component)
    assert adapter.components == (component,)
    for stored, edit in adapter.of(component).items():
        down, up = factors(root.get_submodule(stored))
        torch.testing.assert_close(edit.dense(), scale * (up @ down))
    return adapter


@pytest.mark.parametrize(
    "spell",
    [
        lambda path: f"unet.{path}",
        lambda path: path,
        lambda path: f"base_model.model.{path}",
        lambda path: f"unet.base_model.model.{path}",
    ],
)
@pytest.mark.parametrize(
    "ends",
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_A.my_style.weight", "lora_B.my_style.weight"),
        ("lora.down.weight", "lora.up.weight"),
    ],
)
def test_prefixes_and_adapter_names(shipped, tmp_path, spell, ends):
    paths = readers(shipped.unet)
    made = name_pairs(shipped.unet, paths, spell, ends)
    adapter = assert_imports(shipped, "unet", made, tmp_path / "a.safetensors")
    assert len(adapter.edits) == len(paths)


def test_attention_processors_of_old(shipped, tmp_path):
    paths = readers(shipped.unet, ("attn2.to_k", "attn2.to_out.0"))
    made = name_pairs(shipped.unet, paths, str, ("A", "B"))
    old = {}
    for name, value in made.items():
        path, _, end = name.rpartition(".")
        path = "unet." + path.removesuffix(".0").replace("attn2.to_", "attn2.processor.to_")
        old[f"{path}_lora.{'down' if end == 'A' else 'up'}.weight"] = value
    adapter = assert_imports(shipped, "unet", old, tmp_path / "a.safetensors")
    assert len(adapter.edits) == len(paths)


def test_names_of_sd_scripts_for_sdxl(tmp_path):
    pipe = build("StableDiffusionXLPipeline")
    per_block = pipe.unet.config.layers_per_block + 1
    paths = [path for path in readers(pipe.unet) if path.startswith(("down", "mid"))]

    def spell(path):
        parts = path.split(".")
        if parts[0] == "mid_block":
            block = "middle_block_1"
        else:
            block = f"input_blocks_{int(parts[1]) * per_block + int(parts[3]) + 1}_1"
        return f"lora_unet_{block}_{'_'.join(parts[parts.index('transformer_blocks') :])}"

    ends = ("lora_down.weight", "lora_up.weight")
    made = name_pairs(pipe.unet, paths, spell, ends, alpha=1.5)
    adapter = assert_imports(pipe, "unet", made, tmp_path / "a.safetensors", scale=0.5)
    assert len(adapter.edits) == len(paths) > 0
    stock = copy.deepcopy(pipe)
    stock.load_lora_weights(tmp_path / "a.safetensors", adapter_name="a")
    stock.fuse_lora()
    for stored, edit in adapter.of("unet").items():
        base = pipe.unet.get_submodule(stored).weight
        fused = stock.unet.get_submodule(stored).base_layer.weight
        torch.testing.assert_close(fused - base, edit.dense(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "spell",
    [lambda path: f"transformer.{path}", str, lambda path: f"base_model.model.{path}"],
)
def test_transformers(tmp_path, spell):
    pipe = build("FluxPipeline")
    paths = readers(pipe.transformer, ("attn.add_k_proj", "context_embedder"))
    made = name_pairs(pipe.transformer, paths, spell)
    adapter = assert_imports(pipe, "transformer", made, tmp_path / "a.safetensors")
    assert len(adapter.edits) == len(paths)


def test_peft_settings_scale_the_edit(shipped, tmp_path):
    paths = readers(shipped.unet)
    about = {"unet.r": RANK, "unet.lora_alpha": 6, "unet.alpha_pattern": {}}
    metadata = {"lora_adapter_metadata": json.dumps(about)}
    made = name_pairs(shipped.unet, paths, lambda path: f"unet.{path}")
    assert_imports(shipped, "unet", made, tmp_path / "a.safetensors", 2.0, metadata)
    folder = tmp_path / "peft"
    folder.mkdir()
    settings = {"r": RANK, "lora_alpha": 6, "alpha_pattern": {"attn2.to_[kv]": 9}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    made = name_pairs(shipped.unet, paths, lambda path: f"base_model.model.{path}")
    assert_imports(shipped, "unet", made, folder / "adapter_model.safetensors", 3.0)


def test_names_that_nobody_knows_are_named(shipped, tmp_path):
    made = name_pairs(shipped.unet, readers(shipped.unet)[:1], lambda path: f"nonsense.{path}")
    save_file(made, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFormatError, match=r"nonsense.*use the base"):
        import_lora(tmp_path / "a.safetensors", shipped, SPEC)
