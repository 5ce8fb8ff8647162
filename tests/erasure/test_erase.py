"""The recipe's promises, on the shipped pipeline."""

import copy
from functools import partial, wraps

import pytest
import torch

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, baselines, erasable, erase, glyphs
from diffusers_erasepro.erasure.residuals import relative
from diffusers_erasepro.erasure.states import final_states
from diffusers_erasepro.errors import ConceptSpecError, IllPosedError, UnknownFamilyError
from diffusers_erasepro.families.pipelines import family_of, reader_paths
from diffusers_erasepro.prompts.tokens import token_ids

STAR = Concept("star", anchor="circle")


def test_the_pipeline_stays_bit_for_bit(pipe, preserve):
    before = bits(pipe)
    pipe.text_encoder.train()
    erase(pipe, ErasureSpec((STAR,), preserve=preserve), layers=(0, -1, "kv"))
    assert pipe.text_encoder.training
    assert_same_bits(pipe, before)


def test_also_when_it_raises(pipe, preserve):
    before = bits(pipe)
    with pytest.raises(
        IllPosedError, match=r"the edit is .* times the weight, at most max_edit_size=0.001"
    ):
        erase(pipe, ErasureSpec((STAR,), preserve=preserve), layers=(0, -1), max_edit_size=1e-3)
    assert_same_bits(pipe, before)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": ("neurons", -1)},
        {"layers": (0, 1, 2, -1)},
        {"layers": (-1,)},
        {"layers": (0, -1), "metric": "identity"},
        {"layers": ("kv",)},
    ],
)
def test_listed_prompts_have_no_residual(shipped, preserve, options):
    report = erase(shipped, ErasureSpec((STAR,), preserve=preserve), **options).report
    assert report.listed_residual < 1e-5
    assert report.listed_residual < report.held_out_mean < 1


def test_a_name_of_its_own_is_another_name_to_the_encoder_and_nothing_else_moves(shipped, preserve):
    adapter = erase(shipped, ErasureSpec((STAR,), preserve=preserve))
    assert list(adapter.edits) == ["text_encoder.text_model.embeddings.token_embedding"]
    assert adapter.report.listed_residual < 1e-6
    assert adapter.report.held_out_residual < 1e-6
    assert adapter.report.drift < 1e-6


def test_concepts_are_erased_together(shipped, preserve):
    concepts = (
        STAR,
        Concept("cross", "square"),
        Concept("Mira Voss", "Una Flatt", templates="style"),
    )
    spec = ErasureSpec(concepts, preserve=preserve)
    layers = {"star": ("neurons", -1), "cross": ("neurons", -1), "Mira Voss": ("eos_neurons", -1)}
    adapter = erase(shipped, spec, layers=layers, measure=False)
    assert adapter.report.listed_residual < 1e-5
    assert [layer.constraints for layer in adapter.report.layers] == [
        None,
        None,
        None,
        None,
        12,
    ]  # neurons per word and per concept, then all: three concepts, two exact phrases, two rows


@pytest.mark.parametrize(
    "concept",
    [
        STAR,
        Concept("Mira Voss", "Una Flatt", templates=glyphs.templates("style")),
    ],
    ids=lambda c: c.target,
)
def test_neurons_spare_other_captions_more_than_blocks_do(shipped, preserve, concept):
    spec = ErasureSpec((concept,), preserve=preserve)
    neurons = "eos_neurons" if concept.target == "Mira Voss" else "neurons"
    usual = erase(shipped, spec, layers=(neurons, -1)).report
    blocks = erase(shipped, spec, layers=(0, -1)).report
    assert usual.listed_residual < 1e-5
    assert usual.drift < 0.7 * blocks.drift


@pytest.mark.parametrize("templates", ["object", "style", "person", ("a {}",)])
def test_every_kind_is_erased_by_rows_and_gates(shipped, preserve, templates):
    spec = ErasureSpec((Concept("star", "circle", templates=templates),), preserve=preserve)
    usual = erase(shipped, spec, measure=False)
    layers = ("embedding", "gates", "otherwise:0", -1)
    assert usual.plan.layers == layers
    assert usual.digest == erase(shipped, spec, measure=False, layers=layers).digest


@pytest.mark.parametrize(
    ("spec", "options"),
    [({"keep": ("",)}, {}), ({}, {"robust": True})],
)
def test_where_rows_and_gates_do_not_hold_blocks_do(shipped, preserve, spec, options):
    made = erase(shipped, ErasureSpec((STAR,), preserve=preserve, **spec), measure=False, **options)
    assert made.plan.layers == (0, -1)


@pytest.mark.slow
def test_gates_that_turn_out_too_large_are_not_taken_unless_they_were_asked_for(shipped, preserve):
    """A name of one token keeps its row all the same."""
    spec = ErasureSpec((STAR, Concept("cross", "square")), preserve=preserve)
    with pytest.warns(
        UserWarning, match=r"blocks were edited instead of gates or neurons, as .*the edit is"
    ):
        made = erase(shipped, spec, max_edit_size=0.7, measure=False)
    assert made.plan.layers == ("embedding", 0, -1)
    assert "instead of gates" in made.report.notes[-1]
    assert any(name.endswith("token_embedding") for name in made.edits)
    with pytest.raises(IllPosedError, match=r"max_edit_size=.* is allowed"):
        erase(shipped, spec, max_edit_size=0.7, layers=("gates", -1))


def test_many_concepts_may_change_more_in_all(shipped, preserve):
    shape = glyphs.templates("shape")
    concepts = (
        Concept("star", "circle", templates=shape),
        Concept("cross", "square", templates=shape),
    )
    spec = ErasureSpec(concepts, preserve=preserve)
    (size,) = {
        round(layer.edit_size, 3)
        for layer in erase(shipped, spec, measure=False).report.layers
        if layer.edit_size > 1
    }
    make = partial(erase, shipped, spec, layers=("neurons", -1), measure=False)
    make(max_edit_size=size / 1.4)
    with pytest.raises(IllPosedError, match=r"times the root of 2 concepts is allowed"):
        make(max_edit_size=size / 1.43)


def test_the_metric_spares_other_captions(shipped, preserve):
    spec = ErasureSpec((STAR,), preserve=preserve)
    usual = erase(shipped, spec, layers=("neurons", -1)).report
    plain = erase(shipped, spec, layers=("neurons", -1), metric="identity").report
    assert usual.drift < 0.5 * plain.drift


def test_soft_prompts_lower_the_residual_of_unseen_phrasings(shipped, preserve):
    bare = Concept("star", "circle", templates=("a {}",), soft_templates=())
    without = erase(shipped, ErasureSpec((bare,), preserve=preserve), layers=(0, -1)).report
    usual = erase(shipped, ErasureSpec((STAR,), preserve=preserve), layers=(0, -1)).report
    assert usual.held_out_mean < without.held_out_mean


@pytest.mark.parametrize("layers", [(0, -1), ("kv",)])
def test_kept_prompts_stay_exactly_as_they_are(pipe, preserve, layers):
    keep = ("",)
    denoiser = pipe.unet
    ids = token_ids(pipe.tokenizer, keep)

    def seen():
        states = final_states(pipe.text_encoder, ids)
        return states, denoiser.get_submodule(reader_paths(denoiser, family_of(pipe))[0])(states)

    before = seen()
    adapter = erase(pipe, ErasureSpec((STAR,), preserve=preserve, keep=keep), layers=layers)
    assert adapter.report.listed_residual < 1e-5
    with torch.no_grad():
        erasable(pipe).load_erasure_adapter(adapter)
        for now, then in zip(seen(), before, strict=True):
            assert relative(now, then).max() < 1e-5


def test_robust_also_turns_what_the_unedited_encoder_says(pipe, preserve):
    ids = token_ids(pipe.tokenizer, ["a star", "a circle"])
    before = bits(pipe)
    adapter = erase(pipe, ErasureSpec((STAR,), preserve=preserve), robust=True, measure=False)
    assert adapter.report.listed_residual < 1e-5
    with torch.no_grad():
        star, circle = final_states(pipe.text_encoder, ids)[:, [2, 3]]  # the word, EOS
        readers = [
            pipe.unet.get_submodule(path) for path in reader_paths(pipe.unet, family_of(pipe))
        ]
        wanted = [reader(circle) for reader in readers]
        plain = readers[3].weight.clone()
        erasable(pipe).load_erasure_adapter(adapter)
        assert pipe.verify_erasure().ok
        for reader, goal in zip(readers, wanted, strict=True):
            assert relative(reader(star), goal).max() < 1e-5
        erased = readers[3].weight.clone()
        readers[3].weight.copy_(
            plain
        )  # prompts still read as the anchor, the unedited encoder's states no longer
        assert not pipe.verify_erasure().ok
        readers[3].weight.copy_(erased)
        pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


@pytest.mark.parametrize(
    "make",
    [
        partial(erase, layers=("neurons", -1)),
        pytest.param(erase, marks=pytest.mark.slow),
        partial(erase, robust=True, measure=False),
        baselines.uce,
    ],
)
def test_an_active_erasure_changes_nothing_of_the_next_one(shipped, pipe, preserve, make):
    erasable(pipe).load_erasure_adapter(
        erase(shipped, ErasureSpec((STAR,), preserve=preserve), robust=True, measure=False)
    )
    spec = ErasureSpec((Concept("cross", "square"),), preserve=preserve)
    assert make(pipe, spec).to_bytes() == make(shipped, spec).to_bytes()


def test_one_robust_adapter_makes_the_stack_robust(pipe, preserve):
    ids = token_ids(pipe.tokenizer, ["a cross", "a square"])
    with torch.no_grad():
        last = (ids == pipe.tokenizer.eos_token_id).int().argmax(1) - 1
        cross, square = final_states(pipe.text_encoder, ids)[torch.arange(2), last]
        reader = pipe.unet.get_submodule(reader_paths(pipe.unet, family_of(pipe))[0])
        goal = reader(square)
    for target, anchor, robust in (("star", "circle", True), ("cross", "square", False)):
        spec = ErasureSpec((Concept(target, anchor),), preserve=preserve)
        made = erase(pipe, spec, robust=robust, layers=(0, -1), measure=False)
        erasable(pipe).load_erasure_adapter(made, adapter_name=target)
    assert pipe.verify_erasure().ok
    with torch.no_grad():
        assert relative(reader(cross)[None], goal[None]).max() < 1e-5


def test_prompts_are_tokenized_once_for_an_erasure_and_anew_for_the_next(
    pipe, preserve, monkeypatch
):
    """`encode_prompt` is slow: for Flux's T5 it runs CLIP first."""
    asked = []
    stock = type(pipe).encode_prompt

    @wraps(stock)
    def noting(self, prompt, *args, **kwargs):
        asked.append(tuple(prompt))
        return stock(self, prompt, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "encode_prompt", noting)
    spec = ErasureSpec((STAR,), preserve=preserve[:20])
    first = erase(pipe, spec, metric="identity")
    lists = [texts for texts in asked if len(texts) > 1]
    assert lists and len({*lists}) == len(lists)
    asked.clear()
    assert erase(pipe, spec, metric="identity").digest == first.digest
    assert {*lists} & {*asked}


def test_no_full_matrix_is_stored(no_star):
    for factors in no_star.edits.values():
        assert (
            factors.A.shape[0] == factors.B.shape[1] < min(factors.A.shape[1], factors.B.shape[0])
        )


def test_the_same_spec_gives_the_same_bytes(shipped, preserve, no_star):
    spec = ErasureSpec((STAR,), preserve=preserve)
    again = erase(shipped, spec, layers=("neurons", -1))
    assert again.to_bytes() == no_star.to_bytes()
    assert erase(shipped, spec).to_bytes() == erase(shipped, spec).to_bytes()


def test_nothing_in_its_place(shipped, preserve):
    spec = ErasureSpec(
        (Concept("cracked", anchor="", templates=glyphs.templates("attribute")),), preserve=preserve
    )
    assert erase(shipped, spec, measure=False).report.listed_residual < 1e-5


@pytest.mark.slow
def test_without_preserve_captions_the_shipped_corpus_serves(shipped):
    assert erase(shipped, STAR).report.listed_residual < 1e-5


def test_max_rank_bounds_every_layer_and_keeps_the_listed_prompts(shipped, preserve):
    spec = ErasureSpec((STAR,), preserve=preserve)
    report = erase(shipped, spec, layers=(0, -1), max_rank=4, measure=False).report
    assert max(layer.rank for layer in report.layers) <= 4 and report.listed_residual < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_pipelines_are_solved_in_float(shipped, preserve, dtype):
    pipe = copy.deepcopy(shipped).to(dtype)
    before = bits(pipe)
    spec = ErasureSpec((STAR,), preserve=preserve)
    assert erase(pipe, spec, measure=False).report.listed_residual < 1e-5
    assert_same_bits(pipe, before)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (
            {"layers": (17,)},
            ConceptSpecError,
            "unknown layer 17: the text encoder has blocks 0 to 5",
        ),
        ({"layers": ("attn",)}, ConceptSpecError, "unknown layer 'attn'"),
        ({"strength": 1}, ConceptSpecError, "unknown option 'strength'"),
        ({"robust": "yes"}, ConceptSpecError, "robust must be True or False"),
    ],
)
def test_unknown_choices_are_errors(shipped, options, error, says):
    with pytest.raises(error, match=says):
        erase(shipped, STAR, **options)


def test_nothing_left_to_preserve_is_an_error(shipped):
    with pytest.raises(ConceptSpecError, match="every caption of preserve names a target"):
        erase(shipped, ErasureSpec((STAR,), preserve=["a red star"]))


def test_weights_that_are_not_finite_are_an_error(pipe, preserve):
    pipe.text_encoder.get_submodule("encoder.layers.1.mlp.fc2").weight.data[0, 0] = float("nan")
    with pytest.raises(IllPosedError, match="not finite"):
        erase(pipe, ErasureSpec((STAR,), preserve=preserve), layers=(0, -1))


def test_an_unknown_pipeline_is_an_error():
    with pytest.raises(UnknownFamilyError, match=r"object is not a pipeline: it has no components"):
        erase(object(), STAR)


@pytest.mark.slow
def test_too_many_constraints_are_an_error_with_numbers(shipped, preserve):
    concept = Concept(
        "star",
        "circle",
        templates=tuple(f"{'very ' * i}a {{}}" for i in range(20)),
        soft_templates=(),
    )
    many = ErasureSpec(
        [concept, *(Concept(f"thing{i}", "circle", soft_templates=()) for i in range(300))],
        preserve=preserve,
    )
    with pytest.raises(IllPosedError, match=r"1240 constraints on 512 input dimensions"):
        erase(shipped, many)
