"""Of gates of which some are too large, those go, and the other names keep theirs."""

import pytest
import torch

import tiny
from diffusers_erasepro import Concept, ErasureSpec, erase
from diffusers_erasepro.adapters.report import SizeLimit, frobenius, layer_report
from diffusers_erasepro.config.options import Options
from diffusers_erasepro.config.plan import SELECTIVE
from diffusers_erasepro.erasure.erase import make_or_fall_back
from diffusers_erasepro.erasure.sites.gates import GateSite, TokenOfName
from diffusers_erasepro.erasure.sites.neurons import Mlp
from diffusers_erasepro.errors import EditTooLargeError, IllPosedError
from diffusers_erasepro.linalg.gates import Elsewhere, GateToken, solve_gates
from diffusers_erasepro.linalg.low_rank import LowRank
from diffusers_erasepro.linalg.neuron_pairs import MlpWeights
from diffusers_erasepro.loaders.stacking import solve_or_fall_back

HEART = Concept("heart", "", ("a {}",), ())
RING = Concept("ring", "", ("a {}",), ())
WIDTH = 24


@pytest.fixture(scope="module")
def made():
    pipe = tiny.build("StableDiffusionPipeline")
    return erase(pipe, ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE), measure=False)


def test_a_name_whose_gates_are_too_large_loses_them_and_the_others_do_not(made):
    concepts = (tiny.STAR, HEART, RING)
    spec = ErasureSpec(concepts, preserve=tiny.PRESERVE)
    options = Options()
    tried = []

    def make(plan):
        tried.append(plan)
        if plan.recipe_of(HEART).gates:
            raise EditTooLargeError("fc1: too large", words=("heart",))
        return made

    blocks = options.resolve(concepts, selective=False)
    with pytest.warns(UserWarning, match="instead of the gates of 'heart', as fc1: too large"):
        found = make_or_fall_back(make, spec, options.resolve(concepts), blocks)
    assert dict(tried[-1].recipes)["heart"].layers == ("embedding", 0, -1)
    assert [tried[-1].recipe_of(concept) for concept in (tiny.STAR, RING)] == [SELECTIVE] * 2
    assert "the gates of 'heart'" in found.report.notes[-1]


def test_where_it_is_not_told_whose_all_lose_them_and_then_the_rows(made):
    spec = ErasureSpec((HEART, RING), preserve=tiny.PRESERVE)
    options = Options()
    tried = []

    def make(plan):
        tried.append(plan.layers)
        if len(tried) < 3:
            raise IllPosedError("no")
        return made

    blocks = options.resolve(spec.concepts, selective=False)
    with pytest.warns(UserWarning):
        make_or_fall_back(make, spec, options.resolve(spec.concepts), blocks)
    assert tried == [SELECTIVE.layers, ("embedding", 0, -1), (0, -1)]
    with pytest.raises(IllPosedError):
        make_or_fall_back(lambda plan: tried.clear() or make(plan), spec, blocks, blocks)


def test_files_solved_together_lose_the_gates_of_those_names_alone():
    pipe = tiny.build("StableDiffusionPipeline")
    files = []
    for name in ("star", "square"):
        concept = Concept(name, "circle", ("a {}",), ())
        spec = ErasureSpec((concept,), preserve=tiny.PRESERVE)
        files.append(erase(pipe, spec, measure=False))
    tried = []

    def solve(layers, **options):
        tried.append(layers)
        if len(tried) == 1:
            raise EditTooLargeError("fc1: too large", words=("star",))
        return files[0]

    with pytest.warns(UserWarning, match="instead of the gates of 'star'"):
        solve_or_fall_back(solve, files, ())
    assert tried[-1] == {"star": ("embedding", 0, -1), "square": SELECTIVE.layers}


def test_the_largest_go_until_the_others_fit():
    weight = torch.eye(4)
    edit = LowRank(10 * torch.eye(4), torch.eye(4))
    shares = {"a": 1.0, "b": 300.0, "c": 99.0}
    for limit, words in ((1.0, ("b", "c")), (5.1, ("b",))):
        with pytest.raises(EditTooLargeError) as found:
            layer_report("fc1", weight, edit, None, gap=1.0, limit=SizeLimit(limit), shares=shares)
        assert found.value.words == words
    with pytest.raises(EditTooLargeError) as found:
        layer_report("fc2", weight, edit, None, gap=1.0, limit=SizeLimit(1.0))
    assert found.value.words == ()


def test_the_shares_of_names_make_up_the_detectors_edit():
    """And the one that writes more has the larger share of the writer's."""
    draw = torch.Generator().manual_seed(0)
    captions = torch.randn(300, WIDTH, generator=draw, dtype=torch.float64)
    captions[:, :2] *= 0.05
    captions[:, 2] = 1.0
    gap = torch.zeros(12, WIDTH, dtype=torch.float64)
    gap[:, 5] = 1.0
    tokens = []
    for i, size in enumerate((1.0, 5.0)):
        z = captions[12 * i : 12 * i + 12].clone()
        z[:, i] += 3.0
        tokens.append(GateToken(f"name {i}", z, size * gap, captions[:0]))
    weights = MlpWeights(
        torch.randn(120, WIDTH, generator=draw, dtype=torch.float64) / WIDTH**0.5,
        torch.zeros(120, dtype=torch.float64),
        torch.randn(WIDTH, 120, generator=draw, dtype=torch.float64) / 120**0.5,
        torch.nn.GELU(),
    )
    found = solve_gates(tokens, Elsewhere(captions, captions[:0], captions[:0]), weights)
    assert found.has_gate(0) and found.has_gate(1)
    mlp = Mlp("fc1", "act", "fc2", "block")
    names = [TokenOfName("small", 7, 0), TokenOfName("large", 8, 0)]
    site = GateSite(
        "encoder", mlp, weights, {}, lambda z, gap: (found, ()), names, found.margins, 0.0, {}, {}
    )
    edits = site.solve({"fc1": {}}, {})
    shares = site.shares_of(edits)
    assert sum(shares["fc1"].values()) == pytest.approx(frobenius(edits.factors["fc1"]) ** 2)
    assert shares["fc2"]["large"] > 10 * shares["fc2"]["small"]
