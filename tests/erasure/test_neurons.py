"""Neurons given away.

What the pair answers to, what it costs others, and that everything else holds as for blocks.
"""

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.config.plan import ALIGNMENTS, Recipe
from diffusers_erasepro.erasure.noise_predictions import NoisePredictions
from diffusers_erasepro.erasure.sites import neurons
from diffusers_erasepro.erasure.sites.neurons import EXACT, PLACES, word_gaps
from diffusers_erasepro.erasure.states import final_states
from diffusers_erasepro.errors import AdapterStateError, ConceptSpecError, IllPosedError
from diffusers_erasepro.linalg import neuron_pairs
from diffusers_erasepro.linalg.constrained import cholesky
from diffusers_erasepro.linalg.neuron_pairs import MlpWeights, WordGap, solve_neurons
from diffusers_erasepro.loaders import stacking as compose
from diffusers_erasepro.loaders.stacking import combine_stored, joint_options, joint_spec
from diffusers_erasepro.prompts.alignment import rows_of
from diffusers_erasepro.prompts.pairs import pairs_of
from diffusers_erasepro.prompts.tokens import token_ids

STAR, RING, CROSS = (
    Concept(*names, templates=glyphs.templates("shape"))
    for names in (("star", "circle"), ("ring", "diamond"), ("cross", "square"))
)
VOSS = Concept("Mira Voss", anchor="Una Flatt", templates=glyphs.templates("style"))
GIVEN = {"layers": ("neurons", -1)}
BLOCKS = {"layers": (0, -1)}
AT_EOS = {"layers": ("eos_neurons", -1)}
FC1 = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
FC2 = "text_encoder.text_model.encoder.layers.0.mlp.fc2"


ONE = torch.ones(1, dtype=torch.float64)
"""The weight of a single row."""


def gelu(x):
    return torch.nn.functional.gelu(x)


@pytest.fixture
def mlp():
    """A random one of 8 -> 64 -> 8, inputs of it, and the Cholesky factors of what its linears
    receive."""
    draw = torch.Generator().manual_seed(0)
    W1, W2, z = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((64, 8), (8, 64), (4000, 8))
    )
    b1 = 0.01 * torch.randn(64, generator=draw, dtype=torch.float64)
    heard = gelu(z @ W1.T + b1)
    return W1, b1, W2, z, cholesky(z.T @ z / len(z)), cholesky(heard.T @ heard / len(z))


def solve(words, gaps, mlp, weights=None, L2=None):
    """`solve_neurons` for words of one row each."""
    W1, b1, W2, _, L1, usual = mlp
    weights = weights or [ONE] * len(words)
    rows = [WordGap(*row) for row in zip(words, gaps, weights, strict=True)]
    return solve_neurons(rows, MlpWeights(W1, b1, W2, gelu), L1, usual if L2 is None else L2)


def after(x, W1, b1, W2, edits):
    detector, writer = edits
    return gelu(x @ (W1 + detector.dense()).T + b1) @ (W2 + writer.dense()).T


def answer(x, word, mlp):
    """What the pairs write at `x` in direction of the word's gap, in units of what they write at
    the word."""
    W1, b1, W2, *_ = mlp
    gap = torch.ones(1, 8, dtype=torch.float64)
    with_gap = solve([word], [gap], mlp)
    without = solve([word], [0 * gap], mlp)
    return (after(x, W1, b1, W2, with_gap) - after(x, W1, b1, W2, without)).mean(-1)


def test_the_word_gets_all_that_it_lacks_and_a_tenth_of_it_a_hundredth(mlp):
    word = torch.eye(8, dtype=torch.float64)[:1]
    found = answer(torch.cat([word, 0.1 * word, -0.1 * word, 0 * word]), word, mlp)
    assert float(found[0]) == pytest.approx(1, abs=1e-9)
    assert found[1:3].abs().max() < 0.02 and float(found[3]) == pytest.approx(0, abs=0.01)


def test_a_neuron_that_others_tell_is_given_away_for_free(mlp):
    """Neurons 0 to 9 say what 10 to 19 say, and the rest writes much.

    The pair comes from these, and not both of one kind.
    """
    W1, b1, W2, z, *_ = mlp
    W1[:10] = W1[10:20]
    b1[:10] = b1[10:20]
    W2[:, 20:] = 100 * W2[:, 20:]
    heard = gelu(z @ W1.T + b1)
    M = heard.T @ heard / len(z) + 1e-9 * torch.eye(64, dtype=torch.float64)
    word = torch.eye(8, dtype=torch.float64)[:1]
    none = torch.zeros(1, 8, dtype=torch.float64)
    edits = solve([word], [none], mlp, L2=cholesky(M))
    moved = after(z, W1, b1, W2, edits) - heard @ W2.T
    assert moved.norm() < 1e-4 * (heard @ W2.T).norm()


def test_words_do_not_answer_for_each_other(mlp):
    W1, b1, W2, *_ = mlp
    words = [torch.eye(8, dtype=torch.float64)[i : i + 1] for i in (0, 1)]
    gaps = [torch.full((1, 8), s, dtype=torch.float64) for s in (1.0, -1.0)]
    none = [0 * g for g in gaps]
    made = solve(words, gaps, mlp)
    bare = solve(words, none, mlp)
    for word, gap in zip(words, gaps, strict=True):
        torch.testing.assert_close(
            after(word, W1, b1, W2, made) - after(word, W1, b1, W2, bare), gap, rtol=0, atol=0.05
        )
    assert made[0].rank == 4 and made[1].rank <= 8


def test_an_exact_prompt_counts_as_many_soft_ones(mlp):
    """Two phrasings lack opposite things: what is written meets each by its weight."""
    W1, b1, W2, *_ = mlp
    word = torch.eye(8, dtype=torch.float64)[:1].repeat(2, 1)
    gap = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 8)
    halves = {"exact": word[:1], "soft": word[1:]}
    lacking = {"exact": gap[:1], "soft": gap[1:]}
    (row,) = word_gaps({"exact": ["star"], "soft": ["star"]}, halves, lacking)
    w = row.weights
    made = solve([word], [gap], mlp, [w])
    bare = solve([word], [0 * gap], mlp, [w])
    written = (after(word[:1], W1, b1, W2, made) - after(word[:1], W1, b1, W2, bare)).mean()
    assert w.tolist() == pytest.approx([EXACT / (EXACT + 1), 1 / (EXACT + 1)])
    assert float(written) == pytest.approx(float(w[0] - w[1]), abs=1e-9)


def test_more_words_than_idle_neurons(mlp):
    z = mlp[3]
    with pytest.raises(IllPosedError, match="5 words need 10 of them, 5 of 64 may be taken"):
        solve([z[i : i + 1] for i in range(5)], [z[:1]] * 5, mlp)


@pytest.fixture(scope="module")
def given(shipped, preserve):
    return erase(shipped, ErasureSpec((STAR,), preserve=preserve), **GIVEN)


@pytest.fixture(scope="module")
def at_eos(shipped, preserve):
    return erase(shipped, ErasureSpec((VOSS,), preserve=preserve), **AT_EOS)


@pytest.mark.slow
def test_at_eos_others_move_less_and_no_more_of_a_style_reaches_the_noise_predictions(
    shipped, preserve, at_eos
):
    spec = ErasureSpec((VOSS,), preserve=preserve)
    in_blocks = erase(shipped, spec, **BLOCKS)
    with torch.no_grad():
        (r, d), (r0, d0) = (
            NoisePredictions.of(shipped, spec).compare(adapter) for adapter in (at_eos, in_blocks)
        )
    assert at_eos.report.listed_residual < 1e-5
    assert d < d0 and r < r0
    assert {FC1.replace(".0.", ".5."), FC2.replace(".0.", ".5.")} == set(at_eos.edits)


@pytest.mark.parametrize(
    ("name", "words", "end"),
    [("neurons", ["cracked", "broken"], "cracked"), ("eos_neurons", ["cracked"], "<|endoftext|>")],
)
def test_a_word_has_a_pair_at_its_own_token_and_a_concept_one_at_eos(shipped, name, words, end):
    concepts = (
        Concept(
            "cracked",
            anchor="intact",
            synonyms=("broken",),
            templates=glyphs.templates("attribute"),
        ),
    )
    pairs = pairs_of(concepts, "soft")
    rows = PLACES[name].rows(rows_of(pairs, shipped.tokenizer, ALIGNMENTS["last_subject+eos"]))
    assert list(dict.fromkeys(PLACES[name].names(pairs, rows, concepts))) == words
    assert len(rows.row) == len(pairs)
    i = next(i for i, p in enumerate(pairs) if "cracked" in p.target.text)
    assert shipped.tokenizer.decode(rows.target_ids[i, : int(rows.target_at[i]) + 1]).endswith(end)


def test_others_move_little_more_than_half_and_unseen_phrasings_lack_no_more(
    shipped, preserve, given
):
    in_blocks = erase(shipped, ErasureSpec((STAR,), preserve=preserve), **BLOCKS).report
    assert given.report.listed_residual < 1e-5
    assert given.report.drift < 0.6 * in_blocks.drift
    assert given.report.held_out_mean < in_blocks.held_out_mean
    assert {FC1, FC2} < set(given.edits) and given.edits[FC1].rank == 2
    assert any("of two adapters may be the same ones" in note for note in given.report.notes)


def test_live_it_is_what_the_walk_said_and_off_is_the_base(pipe, given):
    before = bits(pipe)
    pipe.load_erasure_adapter(given, adapter_name="no-star")
    assert pipe.verify_erasure(images=True).residual < 1e-5
    pipe.disable_erasure()
    assert_same_bits(pipe, before)


def test_the_file_is_a_lora_that_stock_diffusers_reads(shipped, pipe, given, tmp_path):
    stock = copy.deepcopy(shipped)
    ids = token_ids(shipped.tokenizer, ["a photo of a star", "a red ring on the snow"])
    given.save_pretrained(tmp_path)
    stock.load_lora_weights(tmp_path)
    pipe.load_erasure_adapter(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            final_states(stock.text_encoder, ids),
            final_states(pipe.text_encoder, ids),
            rtol=0,
            atol=1e-4,
        )


def test_they_stack_with_each_other_and_with_blocks_in_any_order(shipped, preserve, given, at_eos):
    ring, cross = (
        erase(shipped, ErasureSpec((concept,), preserve=preserve), measure=False, **layers)
        for concept, layers in ((RING, GIVEN), (CROSS, BLOCKS))
    )
    names = {"star": given, "ring": ring, "voss": at_eos, "cross": cross}
    found = []
    for order in (["star", "ring", "voss", "cross"], ["cross", "voss", "ring", "star"]):
        pipe = erasable(copy.deepcopy(shipped))
        for name in order:
            pipe.load_erasure_adapter(names[name], adapter_name=name)
        assert pipe.verify_erasure().residual < 1e-5
        found.append(bits(pipe))
        pipe.delete_erasure_adapters("ring")
        assert pipe.verify_erasure().residual < 1e-5
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_together_each_keeps_its_layers_and_its_positions(shipped, preserve, given, at_eos):
    spec = ErasureSpec((CROSS,), preserve=preserve)
    cross = erase(shipped, spec, measure=False, layers=(0, -1), alignment="subject")
    joint = erase(
        shipped, joint_spec([given, at_eos, cross]), **joint_options([given, at_eos, cross])
    )
    assert dict(joint.plan.recipes) == {
        "star": Recipe(("neurons", -1), "last_subject+eos"),
        "Mira Voss": Recipe(("eos_neurons", -1), "last_subject+eos"),
        "cross": Recipe((0, -1), "subject"),
    }
    assert joint.report.listed_residual < 1e-5
    asked = [
        (layer.name.split("layers.")[1][:9], layer.constraints) for layer in joint.report.layers
    ]
    assert asked == [
        ("0.mlp.fc1", None),
        ("0.mlp.fc2", None),
        ("0.mlp.fc2", 2),
        ("5.mlp.fc1", None),
        ("5.mlp.fc2", None),
        ("5.mlp.fc2", 6),
    ]
    assert erase(shipped, spec, **joint_options([cross])).plan == cross.plan


def test_a_refit_holds_under_a_lora_on_the_same_mlp(pipe, given):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["fc1", "fc2"], init_lora_weights=False)
    pipe.text_encoder = get_peft_model(pipe.text_encoder, config).base_model.model
    pipe.load_erasure_adapter(given, adapter_name="no-star")
    assert pipe.verify_erasure().residual > 1e-3
    pipe.refit_erasure()
    assert pipe.verify_erasure().residual < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_clip_encoder_has_them(dtype):
    pipe = tiny.build("StableDiffusionXLPipeline").to(dtype)
    for choice in (GIVEN, AT_EOS):
        report = erase(
            pipe, ErasureSpec((STAR,)), metric="identity", max_edit_size=1e3, **choice
        ).report
        assert report.listed_residual < 1e-5 and len(report.encoders) == 2


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        ({}, {"keep": ("",)}, "not exactly kept; leave keep out"),
    ],
)
def test_what_they_do_not_go_with(shipped, preserve, options, spec, message):
    with pytest.raises(ConceptSpecError, match=message):
        erase(shipped, ErasureSpec((STAR,), preserve=preserve, **spec), **GIVEN, **options)


def test_a_block_gives_its_neurons_away_once():
    pipe = tiny.build("StableDiffusionPipeline")
    pipe.text_encoder = tiny.clip(layers=1)
    spec = ErasureSpec((STAR, VOSS))
    assert erase(pipe, spec, metric="identity", measure=False).plan.layers == (0, -1)
    with pytest.raises(
        ConceptSpecError, match=r"first block of CLIPTextModel is the last that is read"
    ):
        erase(pipe, spec, metric="identity", layers=("neurons", "eos_neurons", -1))


def test_gated_mlps_have_none():
    with pytest.raises(
        ConceptSpecError, match=r"MLPs of T5EncoderModel are gated.*such as layers=\(0, -1\)"
    ):
        erase(
            tiny.build("PixArtSigmaPipeline"),
            ErasureSpec((STAR,)),
            metric="identity",
            layers=("neurons", -1),
        )


def test_files_alone_do_not_put_them_together(given, at_eos):
    with pytest.raises(AdapterStateError, match="may have assigned the same"):
        combine_stored([given, at_eos])


@pytest.mark.parametrize("why", ["too few neurons", "keep"])
def test_where_neurons_are_not_for_all_blocks_are(
    pipe, shipped, preserve, given, at_eos, why, monkeypatch
):
    if why == "keep":
        spec = ErasureSpec((CROSS,), preserve=preserve, keep=("",))
        third = erase(shipped, spec, measure=False)
    else:
        monkeypatch.setattr(neurons, "SPARE", 400)  # 1 of them may go
        monkeypatch.setattr(neuron_pairs, "SPARE", 400)
        monkeypatch.setattr(compose, "_cache", OrderedDict())
        third = erase(shipped, ErasureSpec((CROSS,), preserve=preserve), measure=False)
    assert third.plan.layers == (0, -1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pipe.load_erasure_adapters({"star": given, "voss": at_eos, "cross": third})
    assert any("gates or neurons" in str(w.message) for w in told) == (why == "too few neurons")
    assert pipe.verify_erasure().residual < 1e-5
    assert not any("fc1" in name for name in pipe.text_encoder._erasepro.weights)
