"""What the teacher, all-MiniLM-L6-v2, says of every text: its states at every piece, once.

    python tools/encoders/teacher.py runs/encoders

Takes ten minutes of a core; goes on where an earlier start stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from texts import make_texts
from tqdm import tqdm
from transformers import AutoTokenizer, BertModel

from diffusers_erasepro.pictures.encoder import encoder_folder

SHARD = 4096
LONGEST = 32
"""Pieces of a text; what stands behind them is cut off."""


class Teacher:
    """The encoder that others trained, and its tokenizer."""

    def __init__(self) -> None:
        folder = encoder_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    @torch.no_grad()
    def read(self, texts: list[str]) -> tuple[list[NDArray], list[list[tuple[int, int]]]]:
        """States `(pieces, 384)` of every text, and which characters each piece covers."""
        found = self.tokenizer(
            texts, truncation=True, max_length=LONGEST, return_offsets_mapping=True
        )
        states: list[NDArray] = [np.empty(0)] * len(texts)
        lengths = [len(ids) for ids in found.input_ids]
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        while order:
            length = lengths[order[0]]
            rows = [row for row in order[:64] if lengths[row] == length]
            order = order[len(rows) :]
            ids = torch.tensor([found.input_ids[row] for row in rows])
            for row, state in zip(rows, self.model(input_ids=ids).last_hidden_state, strict=True):
                states[row] = state.numpy()
        return states, found.offset_mapping


def keep_shard(teacher: Teacher, texts: list[str], file: Path) -> None:
    """States in half precision, a row per piece, and where each text and piece lies."""
    states, offsets = teacher.read(texts)
    kept = {
        "states": np.concatenate(states).astype(np.float16),
        "starts": np.cumsum([0, *map(len, states)]),
        "offsets": np.array([pair for text in offsets for pair in text], np.int16),
    }
    new = file.with_suffix(".new.npz")
    np.savez(new, **kept)
    new.rename(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=int, default=0, help="this one of --parts, side by side")
    parser.add_argument("--parts", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "texts.json"
    if not file.exists():
        train, held_out = make_texts(args.folder, args.seed)
        file.write_text(json.dumps({"train": train, "held_out": held_out}), encoding="utf-8")
    texts = json.loads(file.read_text(encoding="utf-8"))
    teacher = Teacher()
    shards = {"held_out": texts["held_out"]}
    for at in range(0, len(texts["train"]), SHARD):
        shards[f"train-{at // SHARD:02}"] = texts["train"][at : at + SHARD]
    for name in tqdm(sorted(shards)[args.part :: args.parts], desc="teacher"):
        file = args.folder / f"{name}.npz"
        if not file.exists():
            keep_shard(teacher, shards[name], file)


if __name__ == "__main__":
    main()
