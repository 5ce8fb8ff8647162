"""Peers: their closed forms are minimisers, their adapters load, stack and verify like ours."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, baselines, pictures
from diffusers_erasepro.baselines.assembly import COMPRESSION
from diffusers_erasepro.baselines.closed_form import solve_ridge
from diffusers_erasepro.baselines.rece import inverse_map
from diffusers_erasepro.errors import AdapterStateError, ConceptSpecError
from diffusers_erasepro.linalg.low_rank import LowRank, compress

PEERS = ("uce", "rece", "speed")


@pytest.fixture(scope="module")
def spec(preserve):
    return ErasureSpec((Concept("star", anchor="circle"),), preserve=preserve[:40])


@pytest.fixture(scope="module")
def pictures_pipe():
    pytest.importorskip("diffusers_erasepro_pictures", reason="the pictures world is missing")
    return pictures.load_pipeline("unet")


@pytest.fixture(scope="module")
def adapters(shipped, spec):
    return {name: baselines.METHODS[name](shipped, spec) for name in (*PEERS, "literal")}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_least_squares_is_a_stationary_point():
    W = random(5, 8)
    X = random(8, 2, seed=1)
    Y = random(8, 2, seed=2)
    K = random(8, 6, seed=3)
    e = 1.5
    p = 0.3
    lamb = 0.7
    change = solve_ridge(X, Y, K, e, p, lamb).dense()
    new = (W + W @ change).requires_grad_()
    loss = (
        e * (new @ X - W @ Y).square().sum()
        + p * ((new - W) @ K).square().sum()
        + lamb * (new - W).square().sum()
    )
    (slope,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)


def test_inverse_map_is_a_stationary_point():
    weights = [random(5, 8), random(9, 8, seed=1)]
    M = random(8, 8, seed=2)
    regulariser = 0.2
    Z = inverse_map(sum(W.T @ W for W in weights), M, regulariser).requires_grad_()
    loss = sum((W @ M @ Z - W).square().sum() for W in weights) + regulariser * Z.square().sum()
    (slope,) = torch.autograd.grad(loss, Z)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-8, rtol=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), error=st.sampled_from([1e-1, 1e-2, 1e-4]))
def test_compress_keeps_its_error_with_the_fewest_directions(seed, error):
    matrix = LowRank(
        random(12, 10, seed=seed) * torch.logspace(0, -6, 10, dtype=torch.float64),
        random(10, 9, seed=seed + 1),
    )
    small, told = compress(matrix, error)
    D = matrix.dense()
    S = torch.linalg.svdvals(matrix.dense())
    assert float((D - small.dense()).norm() / D.norm()) == pytest.approx(told, rel=1e-6, abs=1e-12)
    assert told <= error
    if small.rank > 1:
        assert float(S[small.rank - 1 :].norm() / S.norm()) > error


@pytest.mark.parametrize("name", PEERS)
def test_peers_leave_the_pipeline_as_it_was(pipe, spec, name):
    before = bits(pipe)
    baselines.METHODS[name](pipe, spec)
    assert_same_bits(pipe, before)


@pytest.mark.parametrize("name", (*PEERS, "literal"))
def test_every_cross_attention_is_edited_and_the_concept_comes_closer(adapters, name):
    edited = [layer for layer in adapters[name].edits if ".attn2." in layer]
    assert len(edited) == (7 if name == "speed" else 14)
    assert adapters[name].report.listed_residual < 0.5
    assert adapters[name].report.drift < 0.2


@pytest.mark.parametrize("name", PEERS)
def test_compression_error_is_reported(adapters, name):
    assert all(layer.compression <= COMPRESSION for layer in adapters[name].report.layers)


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_file_comes_back_and_verifies_what_it_reached(pipe, adapters, name, tmp_path):
    adapters[name].save_pretrained(tmp_path)
    assert ErasureAdapter.from_pretrained(tmp_path).to_bytes() == adapters[name].to_bytes()
    before = bits(pipe)
    pipe.load_erasure_adapter(tmp_path)
    assert pipe.verify_erasure().residual == pytest.approx(
        adapters[name].report.listed_residual, rel=1e-3
    )
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


def test_a_round_of_rece_closes_what_the_inverse_map_opens(shipped, spec):
    def revived(rounds):
        """How far the states that revive the target are from what they should give, in units of
        the target's."""
        adapter = baselines.rece(shipped, spec, rounds=rounds)
        edits = adapter.of("unet")
        weights = {
            path: shipped.unet.get_submodule(path).weight.detach().double().cpu() for path in edits
        }
        new = {path: W + edits[path].to(torch.float64).dense() for path, W in weights.items()}
        gram = sum(W.T @ W for W in new.values())
        cross = sum(new[path].T @ weights[path] for path in new)
        Z = torch.linalg.solve(gram + 1e-1 * torch.eye(len(gram), dtype=torch.float64), cross)
        return sum(float((new[p] @ Z - weights[p]).norm() ** 2) for p in new)

    assert revived(1) > 1.05 * revived(0)


def test_speed_does_not_move_the_empty_prompt_or_what_is_above_its_threshold(shipped, spec):
    edits = baselines.speed(shipped, spec, augment=0, readers="kv").of("unet")
    reading_ids = shipped.tokenizer([""], padding="max_length", return_tensors="pt").input_ids.to(
        shipped.device
    )
    empty = shipped.text_encoder(reading_ids).last_hidden_state[0].double()
    for path, edit in edits.items():
        W = shipped.unet.get_submodule(path).weight.detach().double()
        moved = edit.to(torch.float64)(empty[0]).norm() / (W @ empty[0]).norm()
        assert moved < 1e-5


def test_adapters_without_keys_are_added_and_say_so(pipe, adapters, no_cross):
    pipe.load_erasure_adapter(no_cross, adapter_name="ours")
    with pytest.warns(UserWarning, match="added"):
        pipe.load_erasure_adapter(adapters["uce"], adapter_name="uce")
    weight = pipe.unet.get_submodule(next(iter(adapters["uce"].of("unet")))).weight
    base = pipe.unet._erasepro.weights[next(iter(adapters["uce"].of("unet")))].base
    added = next(iter(adapters["uce"].of("unet").values())).dense()
    torch.testing.assert_close(weight.cpu() - base, added, atol=1e-6, rtol=1e-4)
    verified = pipe.verify_erasure()
    assert any("added" in note for note in verified.uncovered)
    assert verified.residual < 0.6
    with pytest.raises(AdapterStateError, match="uce"):
        pipe.refit_erasure()


def test_captions_that_are_too_long_are_said_once_with_their_number(pictures_pipe, capfd):
    long = tuple(f"a {thing} " + "beside a lamp " * 20 for thing in ("pizza", "key", "tulip"))
    spec = ErasureSpec((Concept("bomb", "balloon"),), preserve=(*long, "a carrot", "a bird"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter = baselines.uce(pictures_pipe, spec)
    said = [str(one.message) for one in caught]
    assert len(said) == 1 and said[0].startswith("3 of 5 captions to keep do not fit into the 32")
    assert caught[0].filename == __file__
    assert said[0] in adapter.report.notes
    assert "token" not in capfd.readouterr().err


def test_unknown_methods_and_settings_are_named(shipped, spec):
    with pytest.raises(ConceptSpecError, match="no method 'esd'"):
        baselines.find_method("esd")
    with pytest.raises(ConceptSpecError, match="lambda_"):
        baselines.uce(shipped, spec, lambda_=1.0)
    with pytest.raises(ConceptSpecError, match="regulariser"):
        baselines.rece(shipped, spec, regulariser=-1.0)
    with pytest.raises(ConceptSpecError, match="templates"):
        baselines.uce(shipped, spec, templates=("a star",))
