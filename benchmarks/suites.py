"""diffusers' and PEFT's own LoRA suites as referees: with our package imported, and on a pipeline
with an erasure on.

    python benchmarks/suites.py --diffusers PATH --peft PATH [--suite NAME ...]

The paths are folders that hold the `tests/` of a release; they are copied away and nothing of them
is in this repository. The tests ask the Hub for a tiny CLIP; a folder of its name with a random one
stands for it. Needs `parameterized`. Loaded by pytest as a plugin (`-p suites`), this file gives
diffusers' LoRA tests an erased pipeline.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from common import ROOT, keep_line, kept_lines, provenance

SUITES: dict[str, tuple[str, tuple[str, ...]]] = {
    "diffusers, Stable Diffusion": ("diffusers", ("tests/lora/test_lora_layers_sd.py",)),
    "diffusers, loader and PEFT utilities": (
        "diffusers",
        ("tests/lora/test_lora_loader_utils.py", "tests/lora/test_peft_utils.py"),
    ),
    "diffusers, SDXL": ("diffusers", ("tests/lora/test_lora_layers_sdxl.py",)),
    "peft, custom models -k LoRA": ("peft", ("tests/test_custom_models.py", "-k", "LoRA")),
}
"""Suite -> whose it is, and pytest's arguments."""
WAYS = {"without": (), "imported": ("-p", "diffusers_erasepro"), "erased": ("-p", "suites")}
ERASED = {"diffusers, Stable Diffusion"}
"""Suites that draw with a pipeline, so that it can be an erased one."""
CLIP = "peft-internal-testing/tiny-clip-text-2"


# ---------------------------------------------------------------------- as a plugin

_adapter: Any = None
_erased: list[Any] = []
"""Components made in the test that runs."""
_left: Counter[str] = Counter()


def pytest_itemcollected(item: Any) -> None:
    """Once per class of tests, let its pipelines be erased."""
    stock = getattr(item.cls, "get_dummy_components", None)
    if stock is None or hasattr(stock, "__wrapped__"):
        return

    def erased(self: Any, *args: Any, **kwargs: Any) -> Any:
        components, *configs = stock(self, *args, **kwargs)
        _erase(self.pipeline_class(**components))
        return components, *configs

    erased.__wrapped__ = stock  # type: ignore[attr-defined]
    item.cls.get_dummy_components = erased


def _erase(pipe: Any) -> None:
    """Put one and the same erasure on every pipeline: all of the suite's have the same seed."""
    global _adapter
    from diffusers_erasepro import Concept, ErasureSpec, erasable, erase

    if _adapter is None:
        spec = ErasureSpec(
            (Concept("squirrel", "horse"),),
            preserve=("a red house", "a small boat", "two dogs on grass"),
        )
        _adapter = erase(pipe, spec, layers=(0, "kv"), max_edit_size=1e6)
    erasable(pipe).load_erasure_adapter(_adapter)  # type: ignore[attr-defined]
    _erased.extend((pipe.unet, pipe.text_encoder))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Iterator[None]:
    """After each test: do the weights below its LoRA layers still hold the erasure's bits?"""
    _erased.clear()
    yield
    if found := [_state(module) for module in _erased]:
        _left["other" if "other" in found else "fused" if "fused" in found else "kept"] += 1


def _state(root: Any) -> str:
    """ "kept": bit for bit; "fused": plus what LoRA layers say they have merged, to rounding.

    Else "other".
    """
    from diffusers_erasepro.modules.linear import base_linear
    from diffusers_erasepro.patching.weights import registry_of, track_weights

    states = {"kept"}
    for name, record in track_weights(root).items():
        if record is None:
            layer, target = root.get_submodule(name), registry_of(root).weights[name].target  # type: ignore[union-attr]
            merged = sum(
                (layer.get_delta_weight(n) for n in getattr(layer, "merged_adapters", ())),
                torch.zeros(()),
            )
            off = (base_linear(layer).weight - target - merged).norm() / target.norm()  # type: ignore[operator]
            states.add("fused" if off < 1e-5 else "other")
    return max(states, key=("kept", "fused", "other").index)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line("ERASURE " + " ".join(f"{k}={n}" for k, n in sorted(_left.items())))


# ---------------------------------------------------------------------- as a script


def workplace(folder: Path, source: Path) -> None:
    """A copy of the tests, and what they would fetch or need not have."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from diffusers_erasepro import glyphs

    shutil.copytree(source / "tests", folder / "tests")
    (folder / "tests" / "__init__.py").touch()  # PEFT's release leaves it out
    (folder / "datasets.py").write_text(
        "load_dataset = None\n", encoding="utf-8"
    )  # imported by PEFT's helpers, not used by these tests
    torch.manual_seed(0)
    tokenizer = glyphs.load_pipeline().tokenizer
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=5,
        num_attention_heads=4,
        projection_dim=32,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    CLIPTextModelWithProjection(text).save_pretrained(folder / CLIP)
    tokenizer.save_pretrained(folder / CLIP)


def run(folder: Path, arguments: tuple[str, ...], way: str) -> dict[str, Any]:
    """Test -> "passed", "failed" or "skipped", and what the plugin counted."""
    path = os.pathsep.join(
        [str(ROOT / "src"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    )
    told = folder / "told.xml"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "filterwarnings=",
            f"--junitxml={told}",
            *WAYS[way],
            *arguments,
        ],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path},
        capture_output=True,
        encoding="utf-8",
    )
    if not told.exists():
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    tests = {
        f"{case.get('classname')}::{case.get('name')}": _outcome(case)
        for case in ElementTree.parse(told).iter("testcase")
    }
    told.unlink()
    counted = [
        line.removeprefix("ERASURE ")
        for line in done.stdout.splitlines()
        if line.startswith("ERASURE ")
    ]
    return {"tests": tests, "erasure": counted[0] if counted else ""}


def _outcome(case: ElementTree.Element) -> str:
    tags = {child.tag for child in case}
    return "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"


def row(suite: str, way: str, found: dict[str, Any], without: dict[str, Any]) -> str:
    counts = Counter(found["tests"].values())
    names = found["tests"].keys() | without["tests"].keys()
    other = [n for n in names if found["tests"].get(n) != without["tests"].get(n)]
    cells = [
        suite,
        way,
        *(counts[k] for k in ("passed", "failed", "skipped")),
        len(other),
        found["erasure"],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--diffusers", type=Path)
    parser.add_argument("--peft", type=Path)
    parser.add_argument("--suite", nargs="*", default=list(SUITES))
    parser.add_argument(
        "--lines", type=Path, default=Path("runs/suites.jsonl"), help="JSON lines of finished runs"
    )
    args = parser.parse_args()
    known = {tuple(key): found for key, found in kept_lines(args.lines)}
    print(
        f"{provenance(0)}\n\n| suite | our package | passed | failed | skipped | other than "
        "without | weights after |\n" + "|---" * 7 + "|"
    )
    for suite in args.suite:
        owner, arguments = SUITES[suite]
        if (source := getattr(args, owner)) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            workplace(Path(folder), source)
            for way in WAYS:
                if way == "erased" and suite not in ERASED:
                    continue
                if (suite, way) not in known:
                    known[suite, way] = run(Path(folder), arguments, way)
                    keep_line(args.lines, [[suite, way], known[suite, way]])
                print(row(suite, way, known[suite, way], known[suite, "without"]), flush=True)


if __name__ == "__main__":
    main()
