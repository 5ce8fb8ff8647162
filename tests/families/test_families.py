"""Every family, on a tiny pipeline of its real classes, measured at what its own `encode_prompt`
returns."""

import copy
from dataclasses import replace

import pytest
import torch

import tiny
from conftest import bits, same
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase
from diffusers_erasepro.config.options import Options
from diffusers_erasepro.config.plan import ALIGNMENTS, READERS
from diffusers_erasepro.erasure.layerwise import runs_trees
from diffusers_erasepro.erasure.residuals import anchor_states, relative, target_states
from diffusers_erasepro.errors import (
    BaseModelMismatchError,
    ConceptSpecError,
    UnknownFamilyError,
)
from diffusers_erasepro.families.encode_prompt import call_arguments
from diffusers_erasepro.families.encoders import ENCODERS, blocks_of, encoder_family_of
from diffusers_erasepro.families.pipelines import (
    PIPELINES,
    family_of,
    get_component,
    reader_paths,
    register,
)
from diffusers_erasepro.families.probe import propose_records
from diffusers_erasepro.prompts.alignment import rows_of
from diffusers_erasepro.prompts.pairs import Pair, Prompt
from diffusers_erasepro.prompts.tokens import text_paths
from tiny import PRESERVE, STAR

SHIFT = {
    ("QwenImagePipeline", "text_encoder"): -34,
    ("HunyuanVideoPipeline", "text_encoder"): -95,
    ("StableDiffusion3Pipeline", "text_encoder_3"): 77,
    ("SanaPipeline", "text_encoder"): -554,
}
"""From a position in the encoder to the same in what `encode_prompt` returns.

Template tokens are dropped there, or another encoder's states are put in front.
"""
RING = Concept("ring", "square", ("a {}",), ())
HEART = Concept("heart", "drop", ("a {}",), ())


LAYERS = {"SanaPipeline": (READERS,), "Lumina2Pipeline": (READERS,)}
"""Where no edit of an encoder's linears reaches an arbitrary state, the denoiser's readers carry
the erasure."""


class Case:
    """A family's tiny pipeline, what it held before `erase`, and the adapter made."""

    def __init__(self, name, layers):
        self.name = name
        self.layers = layers
        self.pipe = tiny.build(name)
        self.before = bits(self.pipe)
        self.star = self.erase(STAR)

    def erase(self, concept, **more):
        spec = ErasureSpec((concept,), preserve=PRESERVE)
        return erase(self.pipe, spec, layers=self.layers, **more)

    def received(self, pipe, prompt):
        """The sequences and the vectors that `encode_prompt` returns.

        With readers alone, what they make of its sequence.
        """
        states, *others = encoded(pipe, prompt)
        return (read(pipe, states) if self.layers == (READERS,) else [states]), others

    @property
    def paths(self):
        """The text encoders that the layers reach."""
        every = text_paths(self.pipe)
        return (
            [p for p in every if p.use == family_of(self.pipe).read_whole]
            if self.layers == (READERS,)
            else every
        )

    def erased(self, *adapters):
        pipe = erasable(copy.deepcopy(self.pipe))
        for i, adapter in enumerate(adapters or (self.star,)):
            pipe.load_erasure_adapter(adapter, adapter_name=f"erasure-{i}")
        return pipe


FAST = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "PixArtAlphaPipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
    "WanPipeline",
)
"""One of each kind of encoder and of wrapping.

`make test-all` and `benchmarks/families.py` take them all.
"""


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in tiny.BUILDERS],
)
def case(request):
    return Case(request.param, LAYERS.get(request.param, Options().layers))


@torch.no_grad()
def encoded(pipe, prompt):
    """The floats that `encode_prompt` returns for one prompt.

    Sequences `(length, d)` and vectors `(d,)`.
    """
    found = pipe.encode_prompt(**call_arguments(pipe, [prompt], False))
    flat = [
        x[0] for x in (found if isinstance(found, tuple) else (found,)) if x is not None and len(x)
    ]
    return [x for x in flat if x.is_floating_point()]


@torch.no_grad()
def read(pipe, states):
    """What each of the denoiser's readers makes of the states `(length, d)`, behind the norm if
    there is one."""
    family = family_of(pipe)
    denoiser = get_component(pipe, family.denoiser)
    norm = family.encoders[0].readings[0].norm
    states = denoiser.get_submodule(norm)(states) if norm else states
    return [denoiser.get_submodule(path)(states) for path in reader_paths(denoiser, family)]


def residuals(case, pipe, concept):
    """||erased(target) - base(anchor)|| / ||base(anchor)|| at each position that the erasure
    aligns, and of each vector."""
    pair = Pair(*(Prompt.of("a {}", words) for words in (concept.target, concept.anchor)))
    (have, vectors), (goal, wanted) = (
        case.received(pipe, pair.target.text),
        case.received(case.pipe, pair.anchor.text),
    )
    found = []
    for path in case.paths:
        if any(not reading.pooled for reading in path.use.readings):
            rows = rows_of([pair], path, ALIGNMENTS["last_subject+eos"])
            shift = SHIFT.get((case.name, path.use.encoder), 0)
            for h, g in zip(have, goal, strict=True):
                h = h[rows.target_at + shift]
                g = g[rows.anchor_at + shift]
                found += ((h - g).norm(dim=-1) / g.norm(dim=-1)).tolist()
    if any(
        path.pooled for path in case.paths
    ):  # vectors without one are masks; all zero are position ids
        found += [
            float((h - g).norm() / g.norm())
            for h, g in zip(vectors, wanted, strict=True)
            if h.ndim == 1 and g.any()
        ]
    return found


def difference(case, pipe, other):
    one, another = (
        [*sequences, *vectors]
        for sequences, vectors in (case.received(p, "a star") for p in (pipe, other))
    )
    return max(float((a - b).abs().max()) for a, b in zip(one, another, strict=True))


@pytest.mark.slow
def test_run_in_parts_the_blocks_find_the_same(case, monkeypatch):
    """Hundreds of long rows at once are gigabytes of attention scores.

    Here every block gets two of all rows at a time.
    """
    spec = ErasureSpec((STAR, RING, HEART), preserve=PRESERVE)
    sizes = set()
    rows = [
        p.encoder for p in case.paths if not runs_trees(p.encoder)
    ]  # tests/test_tree.py has the others
    linears = [
        m
        for encoder in rows
        for m in blocks_of(encoder).modules()
        if isinstance(m, torch.nn.Linear)
    ]
    handles = [
        linear.register_forward_pre_hook(lambda _, args: sizes.add(len(args[0])))
        for linear in linears
    ]
    options = {
        "layers": case.layers,
        "measure": False,
        "max_edit_size": 1e3,
    }  # random weights: nothing is near anything
    whole = erase(case.pipe, spec, **options)
    assert not rows or (max(sizes) >= 6 and 2 not in sizes)
    monkeypatch.setattr("diffusers_erasepro.erasure.layerwise.PART", 1)
    parts = erase(case.pipe, spec, **options)
    assert not rows or 2 in sizes
    for handle in handles:
        handle.remove()
    assert parts.edits.keys() == whole.edits.keys() and same(bits(case.pipe), case.before)
    assert not any(
        "forward" in vars(block) for path in case.paths for block in blocks_of(path.encoder)
    )
    for name, factors in whole.edits.items():
        D = factors.dense()
        E = parts.edits[name].dense()
        assert (D - E).norm() < 1e-3 * D.norm(), name


def test_erase_changes_no_bit(case):
    assert same(bits(case.pipe), case.before)


def test_listed_residual_at_encode_prompt(case):
    pipe = case.erased()
    base = residuals(case, case.pipe, STAR)
    assert min(base) > 1e-3  # there was something to erase at every place
    assert max(residuals(case, pipe, STAR)) <= 1e-4
    assert case.star.report.listed_residual <= 1e-5 and pipe.verify_erasure(raise_on_fail=True).ok


def test_off_is_the_base(case):
    pipe = case.erased()
    assert difference(case, pipe, case.pipe) > 1e-3
    for _ in range(2):
        pipe.disable_erasure()
        assert same(bits(pipe), case.before) and difference(case, pipe, case.pipe) == 0
        pipe.enable_erasure()
        assert max(residuals(case, pipe, STAR)) <= 1e-4


def test_saved_and_loaded(case, tmp_path):
    case.star.save_pretrained(tmp_path)
    again = ErasureAdapter.from_pretrained(tmp_path)
    assert (
        again.to_bytes() == case.star.to_bytes()
        and again.report.to_dict() == case.star.report.to_dict()
    )
    assert same(bits(case.erased(again)), bits(case.erased()))


def test_two_stack_in_any_order(case):
    ring = case.erase(RING, measure=False)
    one = case.erased(case.star, ring)
    other = case.erased(ring, case.star)
    assert same(bits(one), bits(other))
    assert max(residuals(case, one, STAR) + residuals(case, one, RING)) <= 1e-4
    one.set_erasure_adapters(["erasure-0"])
    assert same(bits(one), bits(case.erased()))


def test_stock_lora_loads_it_or_the_adapter_says_no(case, tmp_path):
    reached = family_of(case.pipe).stock
    beyond = [part for part in case.star.components if part not in reached]
    notes = [note for note in case.star.report.notes if "stock load_lora_weights" in note]
    assert len(notes) == len(beyond) and all(
        part in note for part, note in zip(beyond, notes, strict=True)
    )
    if beyond:
        return
    case.star.save_pretrained(tmp_path)
    stock = copy.deepcopy(case.pipe)
    stock.load_lora_weights(tmp_path)
    assert difference(case, stock, case.erased()) < 1e-4


def test_layers_shared_with_image_tokens_are_left_alone(case):
    family = family_of(case.pipe)
    readers = reader_paths(get_component(case.pipe, family.denoiser), family)
    allowed = (
        *(f"{use.encoder}." for use in family.encoders),
        *(f"{family.denoiser}.{path}" for path in readers),
    )
    assert all(name.startswith(allowed) for name in case.star.edits)


def readers_of(*, whole: bool) -> list:
    """Pipelines whose denoiser's readers may be edited, and read all that the pipeline reads of
    its text, or not all."""
    records = [
        r
        for r in PIPELINES
        if r.readers and (sum(len(use.readings) for use in r.encoders) == 1) == whole
    ]
    names = [name for record in records for name in record.pipelines if name in tiny.BUILDERS]
    return [
        pytest.param(n, marks=[] if n in (*FAST, "Lumina2Pipeline") else [pytest.mark.slow])
        for n in names
    ]


@pytest.mark.parametrize("name", readers_of(whole=False))
def test_readers_alone_are_refused_where_a_pooled_vector_goes_past_them(name):
    with pytest.raises(ConceptSpecError, match=r"past the denoiser's linears .* such as layers="):
        Case(name, (READERS,))


@pytest.mark.parametrize("name", readers_of(whole=True))
def test_the_denoisers_readers_compute_the_anchors_and_off_is_the_base(name):
    case = Case(name, (READERS,))
    pipe = case.erased()
    assert set(case.star.components) == {family_of(pipe).denoiser} and same(
        bits(case.pipe), case.before
    )
    assert min(residuals(case, case.pipe, STAR)) > 1e-3 and max(residuals(case, pipe, STAR)) <= 1e-4
    pipe.disable_erasure()
    assert same(bits(pipe), case.before) and difference(case, pipe, case.pipe) == 0
    pipe.enable_erasure()
    assert max(residuals(case, pipe, STAR)) <= 1e-4


@pytest.mark.parametrize("name", ["QwenImagePipeline", "ZImagePipeline"])
def test_robust_behind_a_norm_turns_what_the_edited_and_the_unedited_encoder_say(name):
    """Both states of "star" pass the denoiser's norm, and its readers make the anchor's of them."""
    pipe = tiny.build(name)
    before = bits(pipe)
    adapter = erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE), robust=True, measure=False)
    assert same(bits(pipe), before) and adapter.report.listed_residual < 1e-5
    (path,) = text_paths(pipe)
    pair = Pair(Prompt.of("a {}", "star"), Prompt.of("a {}", "circle"))
    rows = rows_of([pair], path, ALIGNMENTS["last_subject+eos"])
    readings = [replace(reading, through=None) for reading in path.use.readings]
    (star,) = target_states(path.encoder, rows, readings)
    (circle,) = anchor_states(path.encoder, rows, readings)
    wanted = read(pipe, circle)
    assert min(largest_difference(read(pipe, star), wanted)) > 1e-3
    erased = erasable(copy.deepcopy(pipe))
    erased.load_erasure_adapter(adapter)
    (edited,) = target_states(erased.text_encoder, rows, readings)
    for states in (star, edited):
        assert max(largest_difference(read(erased, states), wanted)) <= 1e-4
    assert erased.verify_erasure(raise_on_fail=True).ok
    erased.disable_erasure()
    assert same(bits(erased), before)


def largest_difference(some, others):
    """Per reader, the worst ||a - b|| / ||b|| of a position."""
    return [float(relative(a, b).max()) for a, b in zip(some, others, strict=True)]


def test_blocks_that_close_with_a_norm_are_an_error_that_names_the_readers():
    pipe = tiny.build("SanaPipeline")
    before = bits(pipe)
    with pytest.raises(
        ConceptSpecError, match=r"in Gemma2Model a norm follows every linear.*use layers='kv'"
    ):
        erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE), layers=(0, -1))
    assert same(bits(pipe), before)


def test_a_concept_that_one_tokenizer_truncates_is_an_error_that_names_it():
    pipe = tiny.build("StableDiffusion3Pipeline")
    before = bits(pipe)
    long = Concept(
        "star", "circle", ("a " * 90 + "{}",), ()
    )  # 256 tokens of T5 hold it, 77 of CLIP do not
    with pytest.raises(
        ConceptSpecError,
        match=r"text_encoder: concept truncated .* needs \d+ tokens, the tokenizer allows 77",
    ):
        erase(pipe, ErasureSpec((long,), preserve=PRESERVE))
    assert same(bits(pipe), before)


def test_an_encoder_that_is_none_is_skipped_and_said():
    pipe = tiny.build("StableDiffusion3Pipeline")
    pipe.text_encoder_3 = None
    report = erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE), measure=False).report
    assert [e.name for e in report.encoders] == ["text_encoder", "text_encoder_2"]
    assert any("text_encoder_3 is None" in note for note in report.notes)


def test_an_encoder_of_an_unknown_class_is_an_error_and_changes_nothing():
    class Mine(torch.nn.Module):
        pass

    pipe = tiny.build("PixArtAlphaPipeline")
    pipe.text_encoder = Mine()
    before = bits(pipe)
    with pytest.raises(
        UnknownFamilyError,
        match=r"Mine is not a known text-encoder family \(known: .*CLIPTextModel",
    ):
        erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE))
    assert same(bits(pipe), before)


def test_an_adapter_of_another_family_is_refused_and_changes_nothing(no_star):
    for name in ("StableDiffusionXLPipeline", "PixArtAlphaPipeline"):
        pipe = erasable(tiny.build(name))
        before = bits(pipe)
        with pytest.raises(BaseModelMismatchError):
            pipe.load_erasure_adapter(no_star)
        assert same(bits(pipe), before) and pipe.get_erasure_adapters() == {}


def test_an_encoder_edit_loads_wherever_that_encoder_is():
    pipe = tiny.build("StableDiffusionPipeline")
    other = erasable(tiny.build("StableDiffusionPipeline"))
    adapter = erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE), measure=False)
    other.unet.conv_in.weight.data += 1  # another checkpoint, the same text encoder
    other.load_erasure_adapter(adapter)
    assert set(adapter.base) == {"text_encoder"} and other.verify_erasure().ok


def test_the_same_encoder_read_elsewhere_is_another_base():
    pipe = tiny.build("StableDiffusionPipeline")
    other = erasable(tiny.build("StableDiffusionXLPipeline"))
    other.text_encoder = pipe.text_encoder
    with pytest.raises(
        BaseModelMismatchError,
        match=r"text_encoder.last_hidden_state; .* reads text_encoder.hidden_states\[-2\]",
    ):
        spec = ErasureSpec((STAR,), preserve=PRESERVE)
        other.load_erasure_adapter(erase(pipe, spec, measure=False))


def test_readers_where_there_are_none_are_an_error():
    with pytest.raises(
        ConceptSpecError, match="no linear of StableDiffusionXLPipeline's denoiser reads"
    ):
        erase(
            tiny.build("StableDiffusionXLPipeline"),
            ErasureSpec((STAR,), preserve=PRESERVE),
            layers=(0, "kv"),
        )


@pytest.mark.parametrize(
    "name", ["StableDiffusion3Pipeline", "PixArtAlphaPipeline", "QwenImagePipeline", "WanPipeline"]
)
def test_auto_where_it_cannot_look_is_an_error(name):
    with pytest.raises(
        UnknownFamilyError, match=f"layers='auto' looks through a UNet .* give {name} its layers"
    ):
        erase(tiny.build(name), ErasureSpec((STAR,), preserve=PRESERVE), layers="auto")


def test_auto_does_not_draw_with_an_inpainting_unet():
    pipe = tiny.build("StableDiffusionPipeline")
    pipe.unet = tiny.unet(pipe.text_encoder.config.hidden_size, in_channels=9)
    with pytest.raises(
        UnknownFamilyError, match="UNet of 9 channels in, 4 out; erase on its text-to-image sibling"
    ):
        erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE), layers="auto")


def test_kept_prompts_stay_where_an_inner_state_is_read():
    pipe = erasable(tiny.build("ZImagePipeline"))
    base = encoded(pipe, "a red ring")
    pipe.load_erasure_adapter(
        erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE, keep=("a red ring",)), measure=False)
    )
    for kept, before in zip(encoded(pipe, "a red ring"), base, strict=True):
        torch.testing.assert_close(kept, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionXLPipeline",
        "FluxPipeline",
        "QwenImagePipeline",
        "ZImagePipeline",
        "SanaPipeline",
    ],
)
def test_probe_proposes_what_the_record_says(name):
    pipe = tiny.build(name)
    before = bits(pipe)
    proposal = propose_records(pipe)
    known = family_of(pipe)
    assert same(bits(pipe), before) and proposal.pipeline.denoiser == known.denoiser
    assert [u[:2] for u in proposal.pipeline.encoders] == [u[:2] for u in known.encoders]
    for found, use in zip(proposal.pipeline.encoders, known.encoders, strict=True):
        encoder = getattr(pipe, use.encoder)
        count = len(blocks_of(encoder))
        assert [(r.pooled, r.block(count)) for r in found.readings] == [
            (r.pooled, r.block(count)) for r in use.readings
        ]
    for found, use in zip(proposal.encoders, known.encoders, strict=True):
        encoder = getattr(pipe, use.encoder)
        record = encoder_family_of(encoder)
        assert (found.writer, found.causal) == (record.writer, record.causal) and found.blocks[
            0
        ] in record.blocks
        assert set(found.linears) <= set(record.linears)


@pytest.fixture
def no_records():
    """No family is known during the test."""
    kept = [(table, [*table]) for table in (PIPELINES, ENCODERS)]
    for table, _ in kept:
        table.clear()
    yield
    for table, records in kept:
        table[:] = records


@pytest.mark.parametrize(
    "name", ["AllegroPipeline", "StableDiffusion3Pipeline", "WanPipeline", "QwenImagePipeline"]
)
@pytest.mark.usefixtures("no_records")
def test_an_unknown_pipeline_works_with_what_probe_proposes(name):
    """Three that are known, with their records taken away, and one that is not."""
    torch.manual_seed(0)
    pipe = (tiny.BUILDERS | {"AllegroPipeline": tiny.allegro})[name]()
    with pytest.raises(
        UnknownFamilyError,
        match=rf"(?s){name} reads its text_encoder.*, and \w+ is not a known text-encoder family "
        r".*propose_records\(pipe\) .*docs/families.*register\(\n    EncoderFamily\(",
    ):
        erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE))
    proposal = propose_records(pipe)
    register(proposal.pipeline, *proposal.encoders)
    made = erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE), measure=False)
    erasable(pipe).load_erasure_adapter(made)
    assert pipe.verify_erasure(raise_on_fail=True).residual <= 1e-4
