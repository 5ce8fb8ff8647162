"""Distils all-MiniLM-L6-v2 into a small encoder of another class.

    python tools/encoders/distil.py {clip,t5,qwen3} FOLDER --seconds 1500

A student learns the teacher's sentence vectors and, through a linear head, the teacher's state of
the piece that ends where each of its own tokens ends. `--seconds` counts what was
trained before a resume; a checkpoint is kept every three minutes. `teacher.py` comes first.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from students import STUDENTS, WIDTH, Student, make_student
from subwords import make_tokenizer
from teacher import LONGEST, Teacher
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

SAVE_EVERY = 180.0
TOKENS = 448
"""Of a batch; its texts are of one length, so that nothing is padded."""
RATE, TABLE_RATE = 1.5e-3, 2e-3


class Lesson:
    """Texts in a student's tokens, and what the teacher says of each token and text."""

    def __init__(
        self,
        texts: list[str],
        shards: list[Path],
        tokenizer: PreTrainedTokenizerFast,
        *,
        half_lower: bool,
    ) -> None:
        states = []
        starts: list[NDArray] = []
        offsets = []
        total = 0
        for file in shards:
            kept = np.load(file)
            states.append(kept["states"])
            starts.append(kept["starts"][:-1] + total)
            offsets.append(kept["offsets"])
            total += len(kept["states"])
        self.states = np.concatenate(states)
        begins = [*np.concatenate(starts).tolist(), total]
        covered = np.concatenate(offsets)
        if len(begins) != len(texts) + 1:
            raise SystemExit(f"{len(begins) - 1} of {len(texts)} texts: let teacher.py finish")
        if half_lower:
            texts = [text.lower() if at % 2 else text for at, text in enumerate(texts)]
        found = tokenizer(texts, truncation=True, max_length=LONGEST, return_offsets_mapping=True)
        self.ids: list[list[int]] = found.input_ids
        self.rows: list[list[int]] = []
        self.sentences = np.empty((len(texts), self.states.shape[1]), np.float32)
        for at, spans in enumerate(found.offset_mapping):
            first, last = begins[at], begins[at + 1]
            self.sentences[at] = self.states[first:last].astype(np.float32).mean(0)
            ends = covered[first : last - 1, 1].tolist()
            self.rows.append([self._row(end, ends, first) for _, end in spans])
            if self.ids[at][-1] == tokenizer.eos_token_id:
                self.rows[at][-1] = last - 1
        sample = self.states[:: max(1, total // 20_000)].astype(np.float32)
        self.mean = torch.from_numpy(sample.mean(0))
        self.spread = torch.from_numpy(sample.std(0)).clamp_min(1e-3)
        self.by_length: dict[int, list[int]] = {}
        for at, row in enumerate(self.ids):
            self.by_length.setdefault(len(row), []).append(at)

    @staticmethod
    def _row(end: int, ends: list[int], first: int) -> int:
        """The teacher's row for a token that ends at this character; -1 if there is none."""
        at = bisect.bisect_left(ends, end)
        return first + at if end > 0 and at < len(ends) else -1

    def batches(self, seed: int) -> list[list[int]]:
        """An epoch of texts, shuffled, each batch of one length."""
        chance = np.random.default_rng(seed)
        found = []
        for length, members in sorted(self.by_length.items()):
            size = max(1, TOKENS // length)
            order = chance.permutation(members).tolist()
            found += [order[at : at + size] for at in range(0, len(order), size)]
        return [found[at] for at in chance.permutation(len(found))]

    def batch(self, members: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, whether the teacher says something of each, what it says, and the sentences."""
        ids = torch.tensor([self.ids[at] for at in members])
        rows = np.array([self.rows[at] for at in members])
        said = torch.from_numpy(self.states[rows.clip(0)].astype(np.float32))
        targets = (said - self.mean) / self.spread
        return ids, torch.from_numpy(rows >= 0), targets, torch.from_numpy(self.sentences[members])


class Reader(nn.Module):
    """A student with the heads through which the teacher judges it."""

    def __init__(self, student: nn.Module, kind: Student) -> None:
        super().__init__()
        self.encoder = student
        self.kind = kind
        self.words = nn.Linear(WIDTH, 384)
        self.sentence = nn.Linear(WIDTH, 384)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What it takes for the teacher's states and sentences."""
        states = self.encoder(input_ids=ids).last_hidden_state
        pooled = states.mean(1) if self.kind.mean else states[:, -1]
        return self.words(states), self.sentence(pooled)


def loss_of(reader: Reader, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Squared error of the states, angle of the sentences, and angles between sentences."""
    ids, told, targets, sentences = batch
    words, found = reader(ids)
    error = (words - targets).square().mean(-1)[told].mean()
    angle = 1 - cosine_similarity(found, sentences).mean()
    own = normalize(found, dim=-1)
    wanted = normalize(sentences, dim=-1)
    between = (own @ own.T - wanted @ wanted.T).square().mean()
    return error + 2.0 * angle + 10.0 * between


class Training:
    """A reader on its way: weights, optimizers, and how long it has run."""

    def __init__(self, reader: Reader, checkpoint: Path) -> None:
        self.reader = reader
        self.checkpoint = checkpoint
        table = reader.encoder.get_input_embeddings()
        for module in reader.modules():  # T5 has its table under two names
            if isinstance(module, nn.Embedding) and module.weight is table.weight:
                module.sparse = True  # a batch changes a few hundred rows of it
        self.dense = [p for p in reader.parameters() if p is not table.weight]
        self.optimizer = torch.optim.AdamW(
            self.dense, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.of_table = torch.optim.SparseAdam([table.weight])
        self.step = 0
        self.seconds = 0.0
        if checkpoint.exists():
            kept = torch.load(checkpoint)
            reader.load_state_dict(kept["reader"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.of_table.load_state_dict(kept["of_table"])
            self.step = kept["step"]
            self.seconds = kept["seconds"]

    def save(self) -> None:
        """Replaces the checkpoint in one move, so that a kill leaves a whole one."""
        new = self.checkpoint.with_suffix(".new")
        kept = {
            "reader": self.reader.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "of_table": self.of_table.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(kept, new)
        os.replace(new, self.checkpoint)

    def run(self, lesson: Lesson, seconds: float, seed: int) -> None:
        """Steps until `seconds` of training have passed, those before a resume included."""
        mean = None
        saved = time.monotonic()
        bar = tqdm(total=round(seconds), initial=round(self.seconds), unit="s")
        batches = lesson.batches(seed)
        epoch = -1
        while self.seconds < seconds:
            began = time.monotonic()
            per_epoch = len(batches)
            if self.step // per_epoch != epoch:
                epoch = self.step // per_epoch
                batches = lesson.batches(seed + epoch)
            past = self.seconds / seconds
            factor = min(1.0, (self.step + 1) / 100) * min(1.0, max(0.01, (1 - past) / 0.6))
            value = self._step(lesson.batch(batches[self.step % per_epoch]), factor)
            mean = value if mean is None else 0.98 * mean + 0.02 * value
            self.seconds += time.monotonic() - began
            bar.update(round(self.seconds) - bar.n)
            bar.set_postfix(step=self.step, epoch=epoch, loss=f"{mean:.4f}", refresh=False)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    def _step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], factor: float) -> float:
        for optimizer, rate in ((self.optimizer, RATE), (self.of_table, TABLE_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        value = loss_of(self.reader, batch)
        value.backward()
        nn.utils.clip_grad_norm_(self.dense, 1.0)
        self.optimizer.step()
        self.of_table.step()
        self.optimizer.zero_grad()
        self.of_table.zero_grad()
        self.step += 1
        return value.item()


def read_lesson(folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast, split: str) -> Lesson:
    """The texts of a split with what the teacher says of them."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))[split]
    shards = sorted(file for file in folder.glob(f"{split}*.npz") if ".new" not in file.name)
    return Lesson(texts, shards, tokenizer, half_lower=STUDENTS[kind].cased)


def read_texts(folder: Path) -> list[str]:
    """What a vocabulary is learnt on: the texts, and again without capitals."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))["train"]
    return [*texts, *map(str.lower, texts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=STUDENTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=1500, help="resumed ones too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(args.kind, args.folder, read_texts(args.folder))
    student = make_student(args.kind, tokenizer, Teacher())
    reader = Reader(student, STUDENTS[args.kind]).train()
    lesson = read_lesson(args.folder, args.kind, tokenizer, "train")
    training = Training(reader, args.folder / args.kind / "checkpoint.pt")
    training.run(lesson, args.seconds, args.seed)


if __name__ == "__main__":
    main()
