"""Of gates of which some are too large, those go, and the other names keep theirs.

On a tiny encoder with random weights, where every token is given a gate.
"""

import math

import pytest
import torch

import tiny
from diffusers_erasepro import Concept, ErasureSpec, erase
from diffusers_erasepro.adapters.report import SizeLimit, layer_report
from diffusers_erasepro.config.plan import SELECTIVE
from diffusers_erasepro.erasure.sites import gates
from diffusers_erasepro.errors import EditTooLargeError
from diffusers_erasepro.linalg import gates as linalg_gates
from diffusers_erasepro.linalg.low_rank import LowRank

OPTIONS = {"metric": "identity", "measure": False}
DETECTOR = "mlp.fc1"


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    monkeypatch.setattr(gates, "LEAST_MARGIN", -torch.inf)
    monkeypatch.setattr(linalg_gates, "LEAST_MARGIN", -torch.inf)


def concept(name):
    return Concept(name, "", ("a {}",), ())


def size_of(made):
    (size,) = [layer.edit_size for layer in made.report.layers if layer.name.endswith(DETECTOR)]
    return size


def test_a_name_whose_gate_is_too_large_loses_it_and_the_other_does_not():
    pipe = tiny.build("StableDiffusionPipeline")
    sizes = {}
    for name in ("heart", "ring"):
        spec = ErasureSpec((concept(name),), preserve=tiny.PRESERVE)
        sizes[name] = size_of(erase(pipe, spec, max_edit_size=1e6, **OPTIONS))
    small, large = sorted(sizes, key=sizes.__getitem__)
    allowed = (sizes[small] + math.hypot(*sizes.values())) / 2 / math.sqrt(2)
    spec = ErasureSpec((concept("heart"), concept("ring")), preserve=tiny.PRESERVE)
    with pytest.warns(UserWarning, match=f"edited instead of the gates of '{large}', as .*fc1"):
        made = erase(pipe, spec, max_edit_size=allowed, **OPTIONS)
    recipes = dict(made.plan.recipes)
    assert recipes[small] == SELECTIVE
    assert recipes[large].layers == ("embedding", 0, -1)
    assert size_of(made) == pytest.approx(sizes[small], rel=0.2)
    assert made.report.listed_residual < 1e-5


def test_the_largest_go_until_the_others_fit():
    weight = torch.eye(4)
    edit = LowRank(10 * torch.eye(4), torch.eye(4))
    shares = {"a": 1.0, "b": 300.0, "c": 99.0}
    with pytest.raises(EditTooLargeError) as found:
        layer_report("fc1", weight, edit, None, gap=1.0, limit=SizeLimit(1.0), shares=shares)
    assert found.value.words == ("b", "c")
    with pytest.raises(EditTooLargeError) as found:
        layer_report("fc1", weight, edit, None, gap=1.0, limit=SizeLimit(5.1), shares=shares)
    assert found.value.words == ("b",)
    with pytest.raises(EditTooLargeError) as found:
        layer_report("fc2", weight, edit, None, gap=1.0, limit=SizeLimit(1.0))
    assert found.value.words == ()
