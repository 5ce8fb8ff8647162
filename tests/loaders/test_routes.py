"""Ways around an erasure: each holds, raises a named error, or is listed by `verify_erasure`."""

import warnings
from itertools import product

import pytest

from diffusers_erasepro.loaders.verification import NEVER_COVERED
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
    "learned token (textual inversion) near the target",
    "prompt_embeds made by this pipeline",
    "prompt_embeds made before the erasure was loaded",
    "prompt weighting (subject x 1.5)",
    "IP-Adapter with an image",
)


@pytest.fixture(scope="session")
def kits(shipped, preserve, tmp_path_factory):
    made = {}

    def kit(where):
        if where not in made:
            made[where] = make_kit(shipped, tmp_path_factory.mktemp("kit"), WHERE[where], preserve)
        return made[where]

    return kit


def check(name, where, dtype, kits, shipped):
    """Take a route; what comes of it is what the route expects there."""
    (route,) = [r for r in ROUTES if r.name == name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' and PEFT's; a route counts by what it does
        outcome = walk_route(route, kits(where), shipped, DTYPES[dtype])
    assert outcome.result in route.expects(where, dtype), outcome
    return outcome


@pytest.mark.parametrize("name", QUICK)
def test_a_route_does_what_is_expected(shipped, kits, name):
    check(name, "both", "fp32", kits, shipped)


def test_no_route_is_expected_to_be_silent():
    kinds = set()
    for route, where, dtype in product(ROUTES, WHERE, DTYPES):
        kinds |= set(route.expects(where, dtype))
    assert {kind for kind in kinds if not kind.endswith("Error")} == {"holds", "listed"}


def test_no_route_is_listed_by_a_note_that_is_there_with_nothing_in_the_way(shipped, kits):
    """Such a note is there whatever was done, so that the route could never be silent."""
    for where in WHERE:
        always = check("nothing (control)", where, "fp32", kits, shipped).verified.uncovered
        assert {*NEVER_COVERED} < {*always}
        for route in ROUTES:
            assert not route.note or not any(route.note in note for note in always), route.name


def test_every_expectation_names_a_cell():
    cells = {"everywhere", *WHERE, *DTYPES, *(f"{w}, {d}" for w, d in product(WHERE, DTYPES))}
    for route in ROUTES:
        assert route.expected.keys() <= cells, route.name


def test_nothing_in_the_way_is_no_alarm(shipped, kits):
    for where in WHERE:
        assert check("nothing (control)", where, "bf16", kits, shipped).verified.ok


@pytest.mark.parametrize(
    "name",
    [
        "layerwise casting of the unet to float8 after loading",
        "fine-tuned after loading: every weight moved by 1 %",
    ],
)
def test_rounded_weights_are_measured_as_they_are(shipped, kits, name):
    outcome = check(name, "both", "bf16", kits, shipped)
    assert outcome.verified.residual == pytest.approx(outcome.residual, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", [route.name for route in ROUTES])
def test_a_route_does_what_is_expected_anywhere(shipped, kits, name, where, dtype):
    check(name, where, dtype, kits, shipped)
