"""The metric is what the layers really receive, and each layer's share is computed once."""

import pytest
import torch

from diffusers_erasepro import Concept, ErasureSpec, erase, glyphs
from diffusers_erasepro.erasure import covariance, disk_cache
from diffusers_erasepro.erasure.covariance import (
    PLENTY,
    metrics,
    metrics_of,
    record_inputs,
    second_moments,
)
from diffusers_erasepro.prompts.tokens import Tokens, text_paths, token_ids

FIRST = "encoder.layers.0.mlp.fc2"
LAST = "encoder.layers.5.mlp.fc2"


@pytest.fixture
def ids(shipped, preserve):
    return Tokens(token_ids(shipped.tokenizer, preserve[:70]))


def linears(shipped, *names):
    return {name: shipped.text_encoder.get_submodule(name) for name in names}


def test_moments_equal_the_obvious_sum(shipped, ids):
    with torch.no_grad(), record_inputs(linears(shipped, FIRST)) as seen:
        states = shipped.text_encoder(ids.ids.to(shipped.device)).last_hidden_state
    found = second_moments(shipped.text_encoder, ids, linears(shipped, FIRST), key="sum")
    for name, inputs in ((FIRST, seen[FIRST]), ("states", states)):
        x = inputs.reshape(-1, inputs.shape[-1]).double().cpu()
        torch.testing.assert_close(found[name], x.T @ x / len(x), rtol=1e-6, atol=1e-9)


def test_a_layer_seen_before_is_not_run_again(shipped, ids):
    runs = []
    handle = shipped.text_encoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        both = second_moments(shipped.text_encoder, ids, linears(shipped, FIRST, LAST), key="once")
        count = len(runs)
        one = second_moments(shipped.text_encoder, ids, linears(shipped, LAST), key="once")
    finally:
        handle.remove()
    assert count == len(runs) == 2 and one.keys() == {LAST, "states"}
    assert one[LAST] is both[LAST]


def test_where_no_states_are_read_the_blocks_behind_the_last_layer_do_not_run(shipped, ids):
    both = second_moments(shipped.text_encoder, ids, linears(shipped, FIRST), key="all")
    runs = []
    behind = shipped.text_encoder.get_submodule(LAST)
    handle = behind.register_forward_hook(lambda *_: runs.append(1))
    try:
        site = linears(shipped, FIRST)
        found = second_moments(shipped.text_encoder, ids, site, key="some", states=None)
    finally:
        handle.remove()
    assert not runs and found.keys() == {FIRST}
    assert torch.equal(found[FIRST], both[FIRST])


def test_another_concept_does_not_run_the_same_preserve_list_again(shipped, preserve, monkeypatch):
    seen = []
    record = covariance._recorded
    monkeypatch.setenv(disk_cache.FOLDER, "off")
    monkeypatch.setattr(covariance, "_moments", type(covariance._moments)())
    monkeypatch.setattr(
        covariance, "_recorded", lambda *given: seen.append(len(given[1])) or record(*given)
    )
    for concept in (Concept("star", "circle", ("a {}",)), Concept("ring", "square", ("a {}",))):
        spec = ErasureSpec((concept,), preserve=preserve)
        erase(shipped, spec, layers=(-1,), measure=False)
    assert seen.count(max(seen)) == 1 and max(seen) > len(preserve) / 2


def test_other_weights_or_captions_are_other_moments(shipped, ids):
    one = second_moments(shipped.text_encoder, ids, linears(shipped, LAST), key="a")[LAST]
    assert (
        second_moments(shipped.text_encoder, ids, linears(shipped, LAST), key="b")[LAST] is not one
    )
    assert not torch.equal(
        second_moments(shipped.text_encoder, ids[1:], linears(shipped, LAST), key="a")[LAST], one
    )


@pytest.mark.parametrize("out", [0, 9])
def test_the_metric_is_the_kept_captions_and_as_much_of_the_empty_prompt(shipped, ids, out):
    encoder = shipped.text_encoder
    empty = Tokens(token_ids(shipped.tokenizer, [""]))
    site = linears(shipped, LAST)
    L = metrics(encoder, [ids], ids[:out], empty, site, key="c", ridge=1e-6)[LAST]
    usual, unconditional = (
        second_moments(encoder, rows, site, key="c")[LAST] for rows in (ids[out:], empty)
    )
    ridge = 1e-6 * usual.diagonal().mean() * torch.eye(len(L))
    torch.testing.assert_close(L @ L.T, usual + unconditional + ridge)


def test_captions_in_two_lists_are_the_same_metric(shipped, ids):
    empty = Tokens(token_ids(shipped.tokenizer, [""]))
    site = linears(shipped, LAST)
    one, two = (
        metrics(shipped.text_encoder, lists, ids[:5], empty, site, key="d", ridge=1e-6)[LAST]
        for lists in ([ids], [ids[:30], ids[30:]])
    )
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("enough", [False, True])
def test_a_regression_has_less_of_a_ridge_where_captions_are_plenty(shipped, enough):
    """With few, what some inputs replace of others would be learnt by heart."""
    (path,) = text_paths(shipped)
    site = linears(shipped, FIRST)
    width = site[FIRST].in_features
    each = int(path.tokens(["a red star"]).read.sum())
    count = PLENTY * width // each
    captions = glyphs.captions(count + 1 if enough else count // 2, seed=0)
    spec = ErasureSpec((Concept("heptagon", anchor="circle"),), preserve=captions)
    usual, found = (
        metrics_of(
            shipped.text_encoder,
            path,
            spec,
            site,
            key="e",
            ridge=0.01,
            for_regression=for_regression,
        )[FIRST]
        for for_regression in (False, True)
    )
    share = float((found @ found.T).diagonal().mean() / (usual @ usual.T).diagonal().mean())
    assert torch.equal(usual, found) is not enough
    assert share < 1 if enough else share == 1
