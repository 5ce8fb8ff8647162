"""What an installed wheel must do, told without the source: erase, save, show, load, stack, verify, switch, stock LoRA."""

import subprocess
import sys
import tempfile
from importlib.metadata import version

import diffusers_erasepro

assert "torch" not in sys.modules, "importing the package imports torch"
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs  # noqa: E402

pipe = erasable(glyphs.load_pipeline())
base = pipe.text_encoder.state_dict()
base = {name: value.clone() for name, value in base.items()}
with tempfile.TemporaryDirectory() as folder:
    for name, concept in {"no-star": Concept("star", "circle"), "no-cross": Concept("cross", "square")}.items():
        erase(pipe, ErasureSpec((concept,), preserve=tuple(glyphs.captions(100)))).save_pretrained(f"{folder}/{name}")
        subprocess.run(
            [f"{sys.prefix}/bin/erasepro", "show", f"{folder}/{name}", "--json"], check=True, stdout=subprocess.DEVNULL
        )
        pipe.load_erasure_adapter(f"{folder}/{name}", adapter_name=name)
    residual = pipe.verify_erasure(raise_on_fail=True).residual
    shown = glyphs.load_judge()(pipe(["a red star on snow"], num_inference_steps=10).images)["shape"]
    assert shown == ["circle"], shown
    pipe.unload_erasure_adapters()
    assert all((value == base[name]).all() for name, value in pipe.text_encoder.state_dict().items())
    pipe.load_lora_weights(f"{folder}/no-star")
packages = ("torch", "diffusers", "transformers", "peft", "huggingface_hub", "safetensors", "numpy")
print(
    f"smoke passed, residual {residual:.1e}:",
    ", ".join(f"{name} {version(name)}" for name in packages),
    diffusers_erasepro.__version__,
)
