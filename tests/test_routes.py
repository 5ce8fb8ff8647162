"""Ways around an erasure: each holds, raises a named error, or is listed by `verify_erasure`. None is silent."""

import copy
import pickle
import warnings
from itertools import product

import pytest
import torch

from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from routes import DTYPES, ROUTES, TARGET, WHERE, draw, make_kit, style, walk_route

QUICK = (
    "nothing (control)",
    "load_lora_weights: style on UNet attention and feed-forward",
    "load_lora_weights: style on the text encoder",
    "unload_lora_weights()",
    "cross_attention_kwargs={'scale': nan}",
    "fuse_lora(), unfuse_lora(), unload_lora_weights()",
    "from_pipe sibling: load and unload a style there",
    "components with another text encoder in a new pipeline",
    "pipe.text_encoder = another",
    "load_state_dict of the base into the components",
    "save_pretrained, from_pretrained, load the erasure again",
    ".to(float16) and back",
    "fuse_qkv_projections()",
    "sequential offload (accelerate.cpu_offload), toggled off and on",
    "prompt_embeds made before the erasure was loaded",
)


@pytest.fixture(scope="session")
def kits(shipped, preserve, tmp_path_factory):
    made = {}

    def kit(where):
        if where not in made:
            made[where] = make_kit(shipped, tmp_path_factory.mktemp("kit"), WHERE[where], preserve)
        return made[where]

    return kit


def check(route, kit, shipped, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' and PEFT's; a route counts by what it does
        outcome = walk_route(route, kit, shipped, dtype)
    assert outcome.kind != "SILENT", (outcome.residual, outcome.share, outcome.verified)
    return outcome


@pytest.mark.parametrize("name", QUICK)
def test_no_route_is_silent(shipped, kits, name):
    (route,) = [r for r in ROUTES if r.name == name]
    check(route, kits("both"), shipped, DTYPES["fp32"])


def test_nothing_in_the_way_is_no_alarm(shipped, kits):
    for where in WHERE:
        outcome = check(ROUTES[0], kits(where), shipped, DTYPES["bf16"])
        assert outcome.kind == "holds" and outcome.verified.ok


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("route", ROUTES, ids=lambda r: r.name)
def test_no_route_is_silent_anywhere(shipped, kits, route, where, dtype):
    check(route, kits(where), shipped, DTYPES[dtype])


def off_and_on(pipe, kit):
    pipe.disable_erasure()
    pipe.enable_erasure()


def drawn_with(pipe, kit):
    draw(pipe, TARGET)


USES = {
    "as loaded": lambda pipe, kit: None,
    "off and on": off_and_on,
    "deepcopy": lambda pipe, kit: copy.deepcopy(pipe),
    "pickle": lambda pipe, kit: pickle.loads(pickle.dumps(pipe)),
    "a drawing": drawn_with,
    "a style on other layers": lambda pipe, kit: style(pipe, kit, "unet"),
    "fused projections": lambda pipe, kit: pipe.fuse_qkv_projections(vae=False),
    "model offload": lambda pipe, kit: pipe.enable_model_cpu_offload(device="cpu"),
}
"""Ordinary use, after which the erasure holds as before."""
WORDS = {"star": "circle", "cross": "square"}


def clean_pipelines(shipped, kits, preserve, dtype):
    """Each place, set of erasures and use: what it is, and the pipeline after it."""
    base = copy.deepcopy(shipped).to(dtype)
    base.set_progress_bar_config(disable=True)
    for where, words in product(WHERE, (("star",), ("cross",), ("star", "cross"))):
        specs = {w: ErasureSpec((Concept(w, anchor=WORDS[w]),), preserve=preserve) for w in words}
        made = {f"no-{w}": erase(shipped, s, layers=WHERE[where], alignment="subject_to_eos") for w, s in specs.items()}
        for use, change in USES.items():
            pipe = erasable(copy.deepcopy(base))
            pipe.load_erasure_adapters(made)
            yield (where, words, use), change(pipe, kits(where)) or pipe


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ordinary_use_is_no_alarm(shipped, kits, preserve, dtype):
    """72 configurations in each dtype, 216 in all."""
    alarms, count = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for which, pipe in clean_pipelines(shipped, kits, preserve, dtype):
            found, sampled = pipe.verify_erasure(), pipe.verify_erasure(sample=4)
            odd = [note for note in found.uncovered if "someone else" in note or "no longer those" in note]
            if odd or not found.ok or not sampled.ok:
                alarms.append((which, found.residual, found.threshold, sampled.residual, odd))
            count += 1
    print(f"{count} configurations in {dtype}, {len(alarms)} alarms")
    assert not alarms and count == 72
