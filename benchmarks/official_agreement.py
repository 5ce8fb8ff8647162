"""The numbers of results/official-code.md: our UCE, RECE and SPEED beside their official code.

All on the same pipeline and prompts.

Takes folders with the official repositories (rohitgandikota/unified-concept-editing,
CharlesGong12/RECE, Ouxiang-Li/SPEED); none of their code is here. Their functions run as they are;
what they import and this comparison does not need (pandas, image writers, a k-means that insists on
CUDA) is replaced by stand-ins.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from scipy.cluster.vq import kmeans2

from common import provenance
from diffusers_erasepro import Concept, ErasureSpec, baselines, glyphs
from diffusers_erasepro.families.pipelines import family_of, reader_paths

SPECS = {
    "star": (Concept("star", "circle"),),
    "Mira Voss": (Concept("Mira Voss", "Una Flatt", templates="style"),),
    "star, heart, cross, ring": (
        Concept("star", "circle"),
        Concept("heart", "triangle"),
        Concept("cross", "square"),
        Concept("ring", "diamond"),
    ),
}
Weights = dict[str, torch.Tensor]


def loaded(path: Path, name: str, stand_ins: dict[str, dict[str, Any]]) -> types.ModuleType:
    """The module at `path`, with stand-ins for some of its imports."""
    for module, content in stand_ins.items():
        sys.modules[module] = types.ModuleType(module)
        sys.modules[module].__path__ = []  # type: ignore[attr-defined]
        sys.modules[module].__dict__.update(content)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights_of(pipe: Any) -> Weights:
    return {
        path: pipe.unet.get_submodule(path).weight.detach().double()
        for path in reader_paths(pipe.unet, family_of(pipe))
    }


def words(concepts: tuple[Concept, ...]) -> tuple[list[str], list[str]]:
    return [c.target for c in concepts], [c.anchor for c in concepts]


def official_uce(
    folder: Path, pipe: Any, concepts: tuple[Concept, ...], captions: list[str]
) -> Weights:
    grad = torch.is_grad_enabled()
    module: Any = loaded(folder / "trainscripts/uce_sd_erase.py", "official_uce", {})
    module.device = "cpu"
    module.torch_dtype = pipe.unet.dtype
    float32 = (
        torch.Tensor.float if pipe.unet.dtype == torch.float32 else torch.Tensor.double
    )  # it inverts in float32 always
    with tempfile.TemporaryDirectory() as out, mock.patch.object(torch.Tensor, "float", float32):
        module.UCE(pipe, *words(concepts), captions, 1, 1, 0.5, out, "uce")
        found = load_file(Path(out) / "uce.safetensors")
    torch.set_grad_enabled(grad)
    return {name.removesuffix(".weight"): value.double() for name, value in found.items()}


def official_rece(
    folder: Path,
    pipe: Any,
    concepts: tuple[Concept, ...],
    captions: list[str],
    start: Weights,
    rounds: int,
) -> Weights:
    """The loop of `train_object.py` around its two functions, from the same UCE weights."""
    package = {"pandas": {}, "official_rece": {"embedding2img": None, "setup_seed": None}}
    search = loaded(
        folder / "utils/embedding_calculation/close_form_emb.py", "official_rece.search", package
    ).close_form_emb_regzero
    edit = loaded(folder / "erase_methods/uce.py", "official_rece.edit", {}).edit_model_adversarial
    live = copy.deepcopy(pipe)
    for path, value in start.items():
        live.unet.get_submodule(path).weight = torch.nn.Parameter(value.to(pipe.unet.dtype))
    targets, anchors = words(concepts)
    for _ in range(rounds):
        ids = pipe.tokenizer(
            anchors, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        new = list(pipe.text_encoder(ids)[0])
        old = [search(live, pipe, target, regeular_scale=1e-3)[1][0] for target in targets]
        live = edit(
            live,
            old,
            new,
            ["", *captions],
            technique="replace",
            preserve_scale=0.1,
            erase_scale=1,
            lamb=0.1,
        )
    return weights_of(live)


def official_speed(
    folder: Path,
    pipe: Any,
    concepts: tuple[Concept, ...],
    captions: list[str],
    *,
    augment: int,
    seed: int,
) -> Weights:
    def clustered(X: torch.Tensor, **_: Any) -> tuple[None, torch.Tensor]:
        return None, torch.from_numpy(kmeans2(X.double().numpy(), 3, minit="++", seed=0)[0]).to(X)

    stand_ins = {
        "pandas": {},
        "kmeans_pytorch": {"kmeans": clustered},
        "src": {},
        "src.utils": {"seed_everything": None},
    }
    module = loaded(folder / "train_erase_null.py", "official_speed", stand_ins)
    args = argparse.Namespace(
        params="KV",
        aug_num=augment,
        disable_filter=False,
        threshold=0.1,
        retain_scale=1.0,
        lamb=0.0,
    )
    torch.manual_seed(seed)
    size = pipe.text_encoder.config.hidden_size
    found = module.edit_model(
        args, pipe, *words(concepts), list(captions), baseline="SPEED", emb_size=size, device="cpu"
    )
    return {name.removesuffix(".weight"): value.double() for name, value in found.items()}


def ours(method: Callable[..., Any], pipe: Any, spec: ErasureSpec, **settings: Any) -> Weights:
    base = weights_of(pipe)
    edits = method(pipe, spec, **settings).of("unet")
    return {path: W + edits[path].to(torch.float64).dense() for path, W in base.items()}


def difference(a: Weights, b: Weights, base: Weights) -> tuple[float, float]:
    """Worst over the linears: ||a - b|| / ||b||, and ||a - b|| / ||b - base||, the share of the
    edit itself."""
    gaps = [
        (
            float((a[p] - b[p]).norm() / b[p].norm()),
            float((a[p] - b[p]).norm() / (b[p] - base[p]).norm()),
        )
        for p in base
    ]
    return max(g[0] for g in gaps), max(g[1] for g in gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("uce", "rece", "speed"):
        parser.add_argument(
            f"--{name}", type=Path, required=True, help=f"folder of the official {name} repository"
        )
    parser.add_argument(
        "--captions", type=int, default=20, help="official RECE encodes each again for each linear"
    )
    args = parser.parse_args()
    print(f"{provenance(0)}; preserve: glyphs.captions({args.captions}, seed=0)\n")
    print(
        "| erased | method | official code in | worst difference of a weight | share of the "
        "edit |\n|---|---|---|---|---|"
    )
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(
            dtype
        )  # the official code makes its identity matrices in the default
        pipe = glyphs.load_pipeline().to(dtype)
        base = weights_of(pipe)
        for name, concepts in SPECS.items():
            spec = ErasureSpec(concepts, preserve=glyphs.captions(args.captions, seed=0))
            captions = list(spec.preserve_captions())
            mine = ours(baselines.uce, pipe, spec)
            rows = {"UCE": (mine, official_uce(args.uce, pipe, concepts, captions))}
            for rounds in (1, 3):
                theirs = official_rece(args.rece, pipe, concepts, captions, mine, rounds)
                rows[f"RECE, {rounds} rounds"] = (
                    ours(baselines.rece, pipe, spec, rounds=rounds),
                    theirs,
                )
            theirs = official_speed(args.speed, pipe, concepts, captions, augment=0, seed=0)
            rows["SPEED, no perturbation"] = (
                ours(baselines.speed, pipe, spec, readers="kv", augment=0),
                theirs,
            )
            first, second = (
                official_speed(args.speed, pipe, concepts, captions, augment=10, seed=seed)
                for seed in (0, 1)
            )
            rows["SPEED, 10 perturbations, other noise"] = (
                ours(baselines.speed, pipe, spec, readers="kv"),
                first,
            )
            rows["official SPEED against itself, another seed"] = (second, first)
            for method, pair in rows.items():
                whole, edit = difference(*pair, base)
                print(
                    (
                        f"| {name} | {method} | {str(dtype).removeprefix('torch.')} | {whole:.1e} "
                        f"| {edit:.1e} |"
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
