"""Pipelines of odd kinds: what they take is found, or an error says what was seen of them."""

import re
import textwrap

import diffusers
import pytest
import torch
import transformers
from diffusers.pipelines.stable_audio import StableAudioProjectionModel

import siblings
import tiny
from conftest import bits, same
from diffusers_erasepro import ErasureSpec, erasable, erase
from diffusers_erasepro.errors import ConceptSpecError, UnknownFamilyError
from diffusers_erasepro.families.encode_prompt import encode, parameters_of
from diffusers_erasepro.families.encoders import ENCODERS, encoder_family_of
from diffusers_erasepro.families.pipelines import PIPELINES, family_of
from tiny import PRESERVE, STAR

SPEC = ErasureSpec((STAR,), preserve=PRESERVE)


class Passing(diffusers.StableDiffusionPipeline):
    """It hands on what it takes: its base asks for a device and two numbers without defaults."""

    def encode_prompt(self, *args, **kwargs):
        return super().encode_prompt(*args, **kwargs)


class ByPosition(diffusers.StableDiffusionPipeline):
    def encode_prompt(self, prompt, *rest):
        return super().encode_prompt(prompt, *rest)


class Wrapped(diffusers.StableDiffusionPipeline):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)

    def encode_prompt(self, prompt, **kwargs):
        return super().encode_prompt(prompt, **kwargs)


@pytest.mark.parametrize(
    "cls", [Passing, ByPosition, pytest.param(Wrapped, marks=pytest.mark.slow)]
)
def test_arguments_that_are_handed_on_are_those_of_the_base(cls):
    stock = tiny.build("StableDiffusionPipeline")
    pipe = cls(**stock.components, requires_safety_checker=False)
    assert {*parameters_of(pipe, "encode_prompt")} == {*parameters_of(stock, "encode_prompt")}
    assert family_of(pipe).encoders == family_of(stock).encoders
    made = erase(pipe, SPEC, measure=False)
    assert made.edits.keys() == erase(stock, SPEC, measure=False).edits.keys()
    assert erasable(pipe).load_erasure_adapter(made) is not None
    assert pipe.verify_erasure(raise_on_fail=True).ok


def test_arguments_that_an_instance_hands_on_are_those_of_its_class():
    pipe = tiny.build("StableDiffusionPipeline")
    stock = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, **kwargs: stock(*args, **kwargs)
    assert {*parameters_of(pipe, "encode_prompt")} >= {"prompt", "device", "clip_skip"}


def test_a_pipeline_for_sound_is_erased_by_its_text():
    """Its words go through T5 as those of pictures do; nobody judged what one hears."""
    pipe = diffusers.StableAudioPipeline(
        vae=None,
        text_encoder=tiny.t5(),
        projection_model=StableAudioProjectionModel(tiny.WIDTH, tiny.WIDTH, 0, 512),
        tokenizer=tiny.t5_tokenizer(),
        transformer=diffusers.StableAudioDiTModel(
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            cross_attention_dim=16,
            cross_attention_input_dim=16,
            global_states_input_dim=16,
            time_proj_dim=16,
        ),
        scheduler=tiny.flow(),
    )
    (use,) = family_of(pipe).encoders
    assert (use.encoder, *map(str, use.readings)) == ("text_encoder", "last_hidden_state")
    pipe = erasable(pipe)
    pipe.load_erasure_adapter(erase(pipe, SPEC, measure=False))
    assert pipe.verify_erasure(raise_on_fail=True).ok


@torch.no_grad()
def conditioned(pipe, prompt):
    """What Anima's denoiser reads of a prompt."""
    states, seen, ids, mask = encode(pipe, [prompt])[:4]
    return pipe.text_conditioner(states, ids, mask, seen)[0]


def test_a_prompt_that_enters_twice_is_erased_in_both_places():
    """Anima reads Qwen3's states, and in a later block the tokens of T5."""
    pipe = siblings.build_modular("AnimaModularPipeline").pipe
    before = bits(pipe)
    found = [use[:2] for use in family_of(pipe).encoders]
    assert found == [("text_encoder", "tokenizer"), ("text_conditioner", "t5_tokenizer")]
    with pytest.raises(ConceptSpecError, match=r"AnimaTextConditioner reads tokens .*'embed"):
        erase(pipe, SPEC, layers=(0, -1), measure=False)
    assert same(bits(pipe), before)
    made = erase(pipe, SPEC, layers="embedding")
    assert {*made.components} == {"text_encoder", "text_conditioner"}
    star, circle = (conditioned(pipe, words) for words in ("a star", "a circle"))
    assert (star - circle).abs().max() > 0.1
    pipe = erasable(pipe)
    pipe.load_erasure_adapter(made)
    assert pipe.verify_erasure(raise_on_fail=True).ok
    erased = conditioned(pipe, "a star")
    assert (erased - circle).abs().max() <= 1e-5
    pipe.disable_erasure()
    assert same(bits(pipe), before) and torch.equal(conditioned(pipe, "a star"), star)


def test_without_the_reader_of_its_tokens_a_second_prompt_is_refused():
    pipe = siblings.build_modular("AnimaModularPipeline").pipe
    pipe.update_components(text_conditioner=None)
    with pytest.raises(UnknownFamilyError, match="words pass beside these encoders"):
        erase(pipe, SPEC, layers="embedding")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "KandinskyV22CombinedPipeline",
            r"KandinskyV22CombinedPipeline has no encode_prompt.*erase on a pipeline that has one",
        ),
        (
            "GlmImagePipeline",
            r"hands a plain prompt to none of text_encoder.*lies elsewhere \(among .*transformer",
        ),
        pytest.param(
            "Ideogram4Pipeline",
            r"calls none of its text encoders text_encoder, at least not as a whole",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_observed_says_where_the_prompt_goes(name, message):
    pipe = siblings.build(name).pipe
    before = bits(pipe)
    with pytest.raises(UnknownFamilyError, match=message):
        erase(pipe, SPEC)
    assert same(bits(pipe), before)


def test_a_prior_is_erased_as_any_other():
    pipe = erasable(siblings.build("KandinskyV22PriorPipeline").pipe)
    pipe.load_erasure_adapter(erase(pipe, SPEC, measure=False))
    assert pipe.verify_erasure(raise_on_fail=True).ok


def test_a_modular_pipeline_without_its_text_block_names_the_blocks_it_has():
    pipe = siblings.build_modular("QwenImageModularPipeline").pipe
    pipe._blocks.sub_blocks.pop("text_encoder")
    before = bits(pipe)
    with pytest.raises(
        UnknownFamilyError,
        match=r"QwenImageModularPipeline has no text_encoder among its blocks \(.*denoise.*\)",
    ):
        erase(pipe, SPEC)
    assert same(bits(pipe), before)


@pytest.fixture
def kept_records():
    """Records that a test registers are forgotten after it."""
    kept = [(table, [*table]) for table in (PIPELINES, ENCODERS)]
    yield
    for table, records in kept:
        table[:] = records


@pytest.mark.usefixtures("kept_records")
def test_the_record_that_an_error_proposes_runs_as_it_is():
    """No pipeline of diffusers reads Phi-3; about twenty lines in the message add it."""
    pipe = siblings.build("LattePipeline").pipe
    torch.manual_seed(0)
    config = transformers.Phi3Config(**tiny._sizes(3))
    pipe.text_encoder = tiny._spread(transformers.Phi3Model(config))
    before = bits(pipe)
    with pytest.raises(UnknownFamilyError, match="Phi3Model is not a known text-encoder") as error:
        erase(pipe, SPEC)
    assert same(bits(pipe), before)
    lines = str(error.value).partition("\n\n")[2]
    assert 10 <= len(lines.splitlines()) <= 30 and "mlp.down_proj" in lines
    exec(textwrap.dedent(lines), {})
    pipe = erasable(pipe)
    pipe.load_erasure_adapter(erase(pipe, SPEC, measure=False))
    assert pipe.verify_erasure(raise_on_fail=True).ok


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        ("Qwen3VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"),
        ("Mistral3Model", "Mistral3Model"),
        ("SmolLM3ForCausalLM", "SmolLM3ForCausalLM"),
        ("GlmModel", "GlmModel"),
        ("Gemma3ForConditionalGeneration", "Gemma3ForConditionalGeneration"),
    ],
)
def test_encoders_have_records_whose_paths_are_there(make, kind):
    encoder = siblings.TEXT_ENCODERS[make]()
    assert type(encoder).__name__ == kind
    record = encoder_family_of(encoder)
    names = {name for name, _ in encoder.named_modules()}
    assert names & {*record.blocks} and names & {*record.embeddings}


@pytest.mark.slow
def test_no_live_pipeline_reads_chatglm():
    """Kolors was the one; diffusers 0.42 keeps it among the deprecated."""
    found = []
    for name, cls in siblings.text_pipelines().items():
        if re.search("ChatGLM", str(cls.__init__.__annotations__)):
            found.append(name)
    assert found == []


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("LTX2Pipeline", "enhance_prompt"),
        ("Flux2Pipeline", "upsample_prompt"),
        pytest.param("Kandinsky6TI2VAPipeline", "expand_prompts", marks=pytest.mark.slow),
    ],
)
def test_what_rewrites_a_prompt_is_said(name, what):
    notes = family_of(siblings.build(name).pipe).notes
    assert any(note.startswith(f"{what}: it may write another prompt") for note in notes)


class Words(transformers.ProcessorMixin):
    """A processor without pictures."""

    @classmethod
    def get_attributes(cls):
        return ["tokenizer"]

    def __init__(self, tokenizer):
        super().__init__(tokenizer, chat_template=None)

    def __call__(self, text=None, images=None, **kwargs):
        return self.tokenizer(text, **kwargs)


@pytest.mark.slow
def test_an_enhancer_that_is_the_text_encoder_reads_the_anchor_too():
    pipe = siblings.build("LTX2Pipeline").pipe
    pipe.register_modules(processor=Words(pipe.tokenizer))

    def enhanced(words):
        return pipe.enhance_prompt(words, "Write.", max_new_tokens=12)

    star = enhanced("a star")
    circle = enhanced("a circle")
    made = erase(pipe, SPEC, layers="embedding", measure=False)
    pipe = erasable(pipe)
    pipe.load_erasure_adapter(made)
    assert star != circle == enhanced("a star")


@pytest.mark.parametrize(
    ("name", "said"),
    [("Flux3ModularPipeline", True), ("QwenImageModularPipeline", False)],
)
def test_padding_that_is_returned_without_a_mask_is_said(name, said):
    notes = family_of(siblings.build_modular(name).pipe).notes
    assert any("text_encoder: states of padding behind" in note for note in notes) == said


@pytest.mark.parametrize("masks", [True, False])
def test_padding_that_an_encoder_masks_by_its_configuration_is_said(masks):
    pipe = tiny.build("StableDiffusionPipeline")
    pipe.text_encoder = siblings.bert()
    pipe.text_encoder.config.use_attention_mask = masks
    notes = family_of(pipe).notes
    assert any("text_encoder: states of padding behind" in note for note in notes) == masks


@pytest.mark.slow
def test_an_enhancer_of_its_own_is_said():
    pipe = siblings.build("ErnieImagePipeline").pipe
    assert not any(note.startswith("pe:") for note in family_of(pipe).notes)
    pipe.register_modules(pe=tiny.llm("Qwen3ForCausalLM", "Qwen3Config"))
    pipe = erasable(pipe)
    pipe.load_erasure_adapter(erase(pipe, SPEC, measure=False))
    said = pipe.verify_erasure().uncovered
    assert any("pe: it may write another prompt" in note for note in said)
