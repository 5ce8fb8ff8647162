"""Exports a distilled encoder and measures it: `export.py {clip,t5,qwen3} FOLDER`.

Writes `worlds/encoders/src/diffusers_erasepro_encoders/KIND` and, beside the weights, what the
rounded encoder was found to know: `quality.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from distil import Reader, read_lesson, read_texts
from safetensors.torch import save_file
from scipy.stats import spearmanr
from students import STUDENTS, make_student
from subwords import make_tokenizer
from teacher import Teacher
from texts import ROOT, wordnet_entries
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

PACKAGE = ROOT / "worlds" / "encoders" / "src" / "diffusers_erasepro_encoders"
WORDS = 1000


def rounded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in eight bits with one scale a row, the rest in half precision."""
    kept = {}
    for name, weight in weights.items():
        if name.endswith("position_ids") or name.endswith("encoder.embed_tokens.weight"):
            continue
        if weight.ndim < 2:
            kept[name] = weight.half()
            continue
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(1e-6).half()
        kept[name] = (weight / scale.float()).round().clamp(-127, 127).to(torch.int8)
        kept[f"{name}.scale"] = scale
    return kept


def word_list(folder: Path) -> list[str]:
    """Plain nouns of things, animals and food, the same ones every time."""
    found = set()
    for part, file, word, _ in wordnet_entries(folder):
        if part == "noun" and file in {5, 6, 13} and word.isalpha() and word.islower():
            found.add(word)
    teacher_knows = Teacher().tokenizer.get_vocab()
    known = sorted(word for word in found if word in teacher_knows)
    return random.Random(0).sample(known, WORDS)


@torch.no_grad()
def measure(reader: Reader, folder: Path, kind: str, tokenizer: Any) -> dict[str, float]:
    """How near the student is to its teacher, on captions and words that it was not trained on."""
    lesson = read_lesson(folder, kind, tokenizer, "held_out")
    found = []
    wanted = []
    error = []
    for members in lesson.batches(0):
        ids, told, targets, sentences = lesson.batch(members)
        words, own = reader(ids)
        found.append(own)
        wanted.append(sentences)
        error.append((words - targets).square().mean(-1)[told])
    own = torch.cat(found)
    theirs = torch.cat(wanted)
    upper = torch.triu_indices(len(own), len(own), 1)
    between = [(normalize(x, dim=-1) @ normalize(x, dim=-1).T)[*upper] for x in (own, theirs)]
    listed = word_list(folder)
    read = Teacher().read([f"one {word}" for word in listed])[0]
    meant = normalize(torch.stack([torch.from_numpy(x).mean(0) for x in read]), dim=-1)
    said = []
    for word in listed:
        ids = tokenizer(f"one {word}").input_ids
        said.append(reader(torch.tensor([ids]))[1][0])
    answers = normalize(torch.stack(said), dim=-1) - normalize(torch.stack(said), dim=-1).mean(0)
    matches = normalize(answers, dim=-1) @ normalize(meant - meant.mean(0), dim=-1).T
    order = matches.argsort(descending=True)
    itself = torch.arange(len(listed))[:, None]
    return {
        "captions": len(own),
        "cosine of sentences": cosine_similarity(own, theirs).mean().item(),
        "rank correlation of similarities": float(spearmanr(*map(Tensor.numpy, between))[0]),
        "variance of states explained": 1 - torch.cat(error).mean().item(),
        "words": len(listed),
        "word found first": (order[:, :1] == itself).any(1).float().mean().item(),
        "word among first five": (order[:, :5] == itself).any(1).float().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=STUDENTS)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    tokenizer = make_tokenizer(args.kind, args.folder, read_texts(args.folder))
    reader = Reader(make_student(args.kind, tokenizer, Teacher()), STUDENTS[args.kind]).eval()
    kept = torch.load(args.folder / args.kind / "checkpoint.pt")
    reader.load_state_dict(kept["reader"])
    files = PACKAGE / args.kind
    files.mkdir(parents=True, exist_ok=True)
    save_file(rounded(reader.encoder.state_dict()), files / "rounded.safetensors")
    reader.encoder.config.architectures = [type(reader.encoder).__name__]
    reader.encoder.config.save_pretrained(files)
    tokenizer.save_pretrained(files)
    whole = files / "tokenizer.json"
    whole.write_text(json.dumps(json.loads(whole.read_text(encoding="utf-8"))), encoding="utf-8")
    sys.path.insert(0, str(PACKAGE.parent))
    from diffusers_erasepro_encoders import load_encoder

    reader.encoder, tokenizer = load_encoder(args.kind)
    quality = measure(reader, args.folder, args.kind, tokenizer)
    quality |= {"steps": kept["step"], "seconds, on a shared machine": round(kept["seconds"])}
    text = json.dumps(quality, indent=1)
    (files / "quality.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
