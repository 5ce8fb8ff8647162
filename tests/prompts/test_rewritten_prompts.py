"""Pipelines that strip, clean or chunk prompts: the concept is found in what they make of them."""

from itertools import pairwise

import diffusers
import pytest
import torch
import transformers

import tiny
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.errors import ConceptSpecError, UnknownFamilyError
from diffusers_erasepro.prompts.alignment import rows_of
from diffusers_erasepro.prompts.pairs import pairs_of
from diffusers_erasepro.prompts.rewriting import match_characters
from diffusers_erasepro.prompts.tokens import text_paths

TEMPLATES = ("of {}", "{} by day", "a photo of {} in snow", "of {}, red", "{}", "a red {}.")
BEHIND = {"of {}": "of", "a photo of {} in snow": "of", "of {}, red": "of", "a red {}.": "red"}
"""Template -> the word before the concept."""


def pieces(path, ids, at):
    return read(path, ids[at : at + 1])


def read(path, ids):
    tokenizer = getattr(path.pipe, path.use.tokenizer)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    return tokenizer.decode(ids.tolist()).strip()


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_nothing_in_its_place_is_what_stands_before_it(name):
    for path in text_paths(tiny.build(name)):
        for template in TEMPLATES:
            pairs = pairs_of((Concept("star", "", (template,), ()),), "exact")
            rows = rows_of(pairs, path, ALIGNMENTS["last_subject"])
            assert "star".endswith(pieces(path, rows.target.ids[0], rows.target_at[0]))
            if template in BEHIND:
                before = rows.anchor.ids[0][: int(rows.anchor_at[0]) + 1]
                assert read(path, before).endswith(BEHIND[template])


@pytest.mark.parametrize("name", ["QwenImagePipeline", "ZImagePipeline", "HunyuanVideoPipeline"])
def test_the_empty_prompt_sits_where_prompts_sit_in_a_template(name):
    path = text_paths(tiny.build(name))[0]
    anchors = []
    for template in ("{}", "{} ", " {}", "  {}"):
        pairs = pairs_of((Concept("star", "", (template,), ()),), "exact")
        rows = rows_of(pairs, path, ALIGNMENTS["subject"])
        anchors.append(int(rows.anchor_at[0]))
        own_space = int(template.startswith(" "))
        assert anchors[-1] == int(rows.target_at.min()) - 1 + own_space
        before = read(path, rows.anchor.ids[0][: anchors[-1] + 1])
        after = read(path, rows.anchor.ids[0][anchors[-1] + 1 :])
        assert before.endswith("user") or name == "HunyuanVideoPipeline"
        assert after.startswith("<|im_end|>") or name == "HunyuanVideoPipeline"
    assert anchors[0] == anchors[1] > 3


@pytest.mark.parametrize(
    "prompt, rewritten",
    [
        ("a ", "a"),
        (" by day", "by day"),
        ("a photo of  in snow", "a photo of in snow"),
        ("A Star , Red", "a star, red"),
        ("l\u2019\u00e9toile", "l'e\u0301toile"),
        ("\uff33tar\u200b ", "Star"),
        ("_star:", "star"),
    ],
)
def test_case_spaces_and_punctuation_are_no_other_words(prompt, rewritten):
    found = match_characters(rewritten, prompt)
    assert len(found) == len(rewritten)
    assert all(a <= b for (a, _), (b, _) in pairwise(found))
    for character, (start, stop) in zip(rewritten, found, strict=True):
        if character.isalpha() and character.isascii():
            assert character.lower() in prompt[start:stop].lower() or not prompt.isascii()


@pytest.mark.parametrize(
    "prompt, rewritten", [("a star", "a"), ("C#", "C"), ("AT&T", "AT T"), ("red star", "star red")]
)
def test_other_words_are(prompt, rewritten):
    assert match_characters(rewritten, prompt) is None


class Rewriting(diffusers.StableDiffusionPipeline):
    """Says another word than it was given."""

    def encode_prompt(
        self, prompt, device, num_images_per_prompt, do_classifier_free_guidance, **kwargs
    ):
        texts = [prompt] if isinstance(prompt, str) else prompt
        return super().encode_prompt(
            [text.replace("star", "sun") for text in texts],
            device,
            num_images_per_prompt,
            do_classifier_free_guidance,
            **kwargs,
        )


def test_a_word_that_is_replaced_is_named():
    pipe = tiny.build("StableDiffusionPipeline")
    pipe = Rewriting(**pipe.components, requires_safety_checker=False)
    with pytest.raises(ConceptSpecError, match=r"rewrites '.*star.*' to '.*sun.*'"):
        erase(pipe, ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE))


class Chunking(diffusers.StableDiffusionPipeline):
    """Tokenizes without padding, and gives the encoder 75 tokens at a time, as lpw does."""

    def ids(self, text):
        return self.tokenizer(text, truncation=False).input_ids[1:-1]

    def encode_prompt(
        self,
        prompt,
        device,
        num_images_per_prompt,
        do_classifier_free_guidance,
        negative_prompt=None,
        **kwargs,
    ):
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        states = self.states(texts)
        if not do_classifier_free_guidance:
            return states, None
        return states, self.states([negative_prompt or ""] * len(texts))

    def states(self, texts):
        ids = [self.ids(text) for text in texts]
        chunks = max(1, -(-max(map(len, ids)) // 75))
        tokenizer = self.tokenizer
        rows = [row + [tokenizer.pad_token_id] * (75 * chunks - len(row)) for row in ids]
        parts = []
        for at in range(0, 75 * chunks, 75):
            part = [
                [tokenizer.bos_token_id, *row[at : at + 75], tokenizer.eos_token_id] for row in rows
            ]
            parts.append(self.text_encoder(torch.tensor(part))[0])
        return torch.cat(parts, 1)


class ByEncode(Chunking):
    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)


class ByTokens(Chunking):
    def ids(self, text):
        return self.tokenizer.convert_tokens_to_ids(self.tokenizer.tokenize(text))


LONG = "a red ring and " * 20


class ByCharacters(Chunking):
    """Looks every letter up, so that no text is tokenized."""

    def ids(self, text):
        return [self.tokenizer.convert_tokens_to_ids(letter) for letter in text.replace(" ", "Ġ")]


@pytest.mark.parametrize("kind", [Chunking, ByEncode, ByTokens])
@pytest.mark.parametrize("anchor", ["circle", ""])
@pytest.mark.parametrize("more", [(), (LONG,)])
def test_chunking_subclasses_work(kind, anchor, more):
    stock = tiny.build("StableDiffusionPipeline")
    pipe = kind(**stock.components, requires_safety_checker=False)
    spec = ErasureSpec(
        (Concept("star", anchor, ("a {}", "a photo of {} in snow"), ()),),
        preserve=(*tiny.PRESERVE, *more),
    )
    # the kind's held-out phrases are longer than one chunk
    options = {"max_edit_size": 1e3, "metric": "identity", "measure": False}
    made = erase(pipe, spec, layers=(0, -1), **options)
    for live in (stock, pipe):
        erasable(live).load_erasure_adapter(made)
        assert live.verify_erasure(raise_on_fail=True).ok
        live.unload_erasure_adapters()


def test_what_tokenizes_nothing_says_what_to_do():
    stock = tiny.build("StableDiffusionPipeline")
    pipe = ByCharacters(**stock.components, requires_safety_checker=False)
    with pytest.raises(UnknownFamilyError, match="stock pipeline with the same components"):
        erase(pipe, ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE), layers=(0, -1))


@pytest.mark.parametrize("kind", [Chunking, diffusers.StableDiffusionPipeline])
def test_a_tokenizer_without_offsets_is_named_with_one_that_has_them(kind):
    stock = tiny.build("StableDiffusionPipeline")
    pipe = kind(**stock.components | {"tokenizer": ByteTokenizer()}, requires_safety_checker=False)
    with pytest.raises(UnknownFamilyError, match=r"ByteTokenizer.*AutoTokenizer\.from_pretrained"):
        erase(pipe, ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE), layers=(0, -1))


class ByteTokenizer(transformers.PythonBackend):
    """One token a byte, in Python."""

    vocab_size = 256
    model_input_names = ("input_ids", "attention_mask")

    def __init__(self):
        marks = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "~")
        super().__init__(model_max_length=77, **marks)

    def get_vocab(self):
        return {chr(i): i for i in range(256)}

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token[0]) % 256

    def _convert_id_to_token(self, index):
        return chr(index)

    def build_inputs_with_special_tokens(self, ids, other=None):
        return [self.bos_token_id, *ids, self.eos_token_id]
