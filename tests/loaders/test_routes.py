"""Ways around an erasure: each holds, raises a named error, or is listed by `verify_erasure`. None is silent."""

import warnings

import pytest

from routes import DTYPES, ROUTES, WHERE, make_kit, walk_route

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
    "save_pretrained with a style on both loaded",
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


@pytest.mark.parametrize("start", ["layerwise casting of the unet to float8 after", "fine-tuned"])
def test_rounded_weights_are_measured_as_they_are(shipped, kits, start):
    (route,) = [r for r in ROUTES if r.name.startswith(start)]
    outcome = check(route, kits("both"), shipped, DTYPES["bf16"])
    assert outcome.verified.residual == pytest.approx(outcome.residual, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("route", ROUTES, ids=lambda r: r.name)
def test_no_route_is_silent_anywhere(shipped, kits, route, where, dtype):
    check(route, kits(where), shipped, DTYPES[dtype])
