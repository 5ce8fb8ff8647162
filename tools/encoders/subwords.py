"""The tokenizers of the three students.

CLIP's own vocabulary, whole, from `open_clip_torch`; Qwen's, from `dashscope`, cut down to its
most frequent tokens and those that the texts use; and a unigram vocabulary as T5's, learnt on the
texts, as no package carries T5's.
"""

from __future__ import annotations

import base64
import gzip
import json
import zipfile
from collections import Counter
from pathlib import Path

from texts import download
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer, T5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

CLIP_MERGES = 49152 - 256 - 2
T5_TOKENS = 12_000
QWEN_FIRST = 4000
"""Tokens of Qwen's vocabulary that stay whether the texts use them or not."""
OFTEN = 6
"""How often the texts use a token of the others that stay."""
END = "<|endoftext|>"


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's, 49,408 tokens."""
    with zipfile.ZipFile(download("open_clip_torch", folder)) as archive:
        packed = archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(packed).decode().split("\n")[1 : CLIP_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", END]
    vocabulary = {token: at for at, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def t5_tokenizer(texts: list[str]) -> T5Tokenizer:
    """Pieces of words by their likelihood, as T5's, learnt on `texts`."""
    learnt = Tokenizer(models.Unigram())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=T5_TOKENS, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    learnt.train_from_iterator(texts, trainer)
    pieces = sorted(learnt.get_vocab().items(), key=lambda item: item[1])
    scores = dict(json.loads(learnt.to_str())["model"]["vocab"])
    vocabulary = [(piece, scores.get(piece, 0.0)) for piece, _ in pieces]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=77)


def qwen_tokenizer(folder: Path, texts: list[str]) -> Qwen2Tokenizer:
    """Qwen's, cut down to the tokens that are frequent, and what these are joined from."""
    letters = bytes_to_unicode()
    with zipfile.ZipFile(download("dashscope", folder)) as archive:
        lines = archive.read("dashscope/resources/qwen.tiktoken").decode().splitlines()
    coded = [base64.b64decode(line.split()[0]) for line in lines]
    ranks = {token: at for at, token in enumerate(coded)}
    spelled = ["".join(letters[byte] for byte in token) for token in coded]
    merges = {}
    for token, spelling in zip(coded, spelled, strict=True):
        if len(token) > 1:
            parts = _last_merge(token, ranks)
            merges[spelling] = tuple("".join(letters[byte] for byte in part) for part in parts)
    whole = _qwen(spelled, list(merges.values()))
    counts = Counter(at for row in whole(texts).input_ids for at in row)
    used = set(spelled[:QWEN_FIRST])
    used.update(spelled[at] for at, count in counts.items() if count >= OFTEN)
    todo = list(used)
    while todo:
        for part in merges.get(todo.pop(), ()):
            if part not in used:
                used.add(part)
                todo.append(part)
    kept = [token for token in spelled if token in used or len(token) == 1]
    return _qwen(kept, [merges[token] for token in kept if token in merges])


def _qwen(tokens: list[str], merges: list[tuple[str, str]]) -> Qwen2Tokenizer:
    vocabulary = {token: at for at, token in enumerate([*tokens, END])}
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that a byte-pair encoding joins last on its way to `token`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], len(ranks)) for i in range(len(parts) - 1)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def make_tokenizer(kind: str, folder: Path, texts: list[str]) -> PreTrainedTokenizerFast:
    """A student's tokenizer, made once and then read from `folder`."""
    kept = folder / kind / "tokenizer"
    classes = {"clip": CLIPTokenizer, "t5": T5Tokenizer, "qwen3": Qwen2Tokenizer}
    if not kept.exists():
        if kind == "clip":
            tokenizer = clip_tokenizer(folder)
        elif kind == "t5":
            tokenizer = t5_tokenizer(texts)
        else:
            tokenizer = qwen_tokenizer(folder, texts)
        tokenizer.save_pretrained(kept)
    return classes[kind].from_pretrained(kept)
