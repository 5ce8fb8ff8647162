"""`torch.set_default_dtype` is the caller's: nothing of ours depends on it, to the last bit."""

import ast
import copy
import random
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import diffusers_erasepro
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.baselines import literal, rece, speed, uce
from diffusers_erasepro.interop.checkpoint import adapter_from_checkpoint
from diffusers_erasepro.interop.lora import export_kohya, import_lora

SOURCE = Path(diffusers_erasepro.__file__).parent
MADE_OF_NOTHING = {
    *("randn", "rand", "normal", "zeros", "ones", "empty", "full", "eye"),
    *("linspace", "logspace", "scalar_tensor"),
}
"""Functions of torch that take the default dtype where none is given."""
DTYPES = (torch.float64, torch.bfloat16)
"""One that widens what is computed with it, and one that rounds it."""
STAR = ErasureSpec((Concept("star", "circle"),), preserve=tuple(glyphs.captions(16, seed=0)))
REQUESTS = {
    "rows": {},
    "neurons": {"layers": ("neurons", -1), "measure": False},
    "blocks": {"layers": (0, -1)},
    "readers": {"layers": ("kv",), "measure": False},
    "robust": {"robust": True, "measure": False},
    "identity": {"layers": (0, -1), "metric": "identity", "measure": False},
    "clip_skip": {"layers": ("neurons", -1), "clip_skip": 1, "measure": False},
}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def alike(make):
    """What `make` gives under float32; it must give the same under the others."""
    wanted = make()
    for dtype in DTYPES:
        with default_dtype(dtype):
            assert make() == wanted, dtype
    return wanted


@pytest.mark.parametrize("options", REQUESTS.values(), ids=REQUESTS)
def test_erase(shipped, options):
    alike(lambda: repr(erase(shipped, STAR, **options).header()))


@pytest.mark.slow
def test_erase_with_chosen_layers(shipped):
    alike(lambda: repr(erase(shipped, STAR, layers="auto").header()))


@pytest.mark.parametrize("method", [uce, rece, speed, literal])
def test_other_methods(shipped, method):
    alike(lambda: repr(method(shipped, STAR).header()))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_verify_load_again_refit_and_switch(shipped, no_star, no_cross, dtype):
    def live():
        random.seed(0)
        pipe = erasable(copy.deepcopy(shipped).to(dtype))
        pipe.load_erasure_adapter(no_star)
        found = [pipe.verify_erasure(), pipe.verify_erasure("a red star", images=True)]
        found.append(pipe.verify_erasure(sample=2))
        pipe.load_erasure_adapter(no_cross)
        found.append(pipe.verify_erasure())
        pipe.refit_erasure()
        found.append(pipe.verify_erasure())
        erased = pipe.text_encoder.state_dict().values()
        found.append([float(value.double().sum()) for value in erased])
        pipe.unload_erasure_adapters()
        return repr(found)

    alike(live)


def test_import_export_and_files(shipped, pipe, no_star, tmp_path):
    pipe.load_erasure_adapter(no_star)

    def convert():
        export_kohya(no_star, tmp_path / "star.safetensors")
        imported = import_lora(tmp_path / "star.safetensors", shipped, STAR)
        content = no_star.save_pretrained(tmp_path / "own").read_bytes()
        return imported.digest, adapter_from_checkpoint(shipped, pipe).digest, content

    alike(convert)


def test_the_shipped_world(shipped):
    images = shipped("a red star", num_inference_steps=2, output_type="pil").images

    def judge():
        clip = glyphs.load_clip()
        pipe = glyphs.load_pipeline()
        dtypes = {value.dtype for value in pipe.text_encoder.state_dict().values()}
        found = clip.images(images).tolist(), clip.texts(["a star"]).tolist()
        return glyphs.load_judge()(images), found, dtypes

    alike(judge)


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: file.stem)
def test_every_tensor_names_its_dtype(file):
    unnamed = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if getattr(node.func.value, "id", "") != "torch":
            continue
        literal = any(isinstance(getattr(part, "value", 0), float) for part in node.args)
        floats = node.func.attr == "tensor" and literal
        named = any(keyword.arg == "dtype" for keyword in node.keywords)
        if (node.func.attr in MADE_OF_NOTHING or floats) and not named:
            unnamed.append(f"{file.name}:{node.lineno}")
    assert not unnamed
