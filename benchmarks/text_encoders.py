"""What an edit of a text encoder does to a name, to near misses and to everything else.

The measures of `../shared/tools/real_encoder.py`, for any encoder with a fast tokenizer: CLIP's and
T5's too, and for the padding behind a prompt, which denoisers read as well.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from diffusers_erasepro.pictures.encoder import encoder_folder, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARED = [folder / "shared" for folder in ROOT.parents if (folder / "shared").is_dir()]
"""Beside the checkout; a worktree may lie a folder deeper."""
TOOL = [*SHARED, ROOT.parent / "shared"][0] / "tools" / "real_encoder.py"
CAPTIONS = TOOL.parents[1] / "data" / "coco-captions.txt"
FIRES = 0.1
"""Relative movement of a token from which an edit counts as having fired."""
PLACES = ("name", "other", "ends", "padding")
BATCH = 128


@cache
def measuring_stick(file: Path = TOOL) -> ModuleType:
    """The frozen tool, imported from where it lies."""
    spec = importlib.util.spec_from_file_location("real_encoder", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_encoder"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Read:
    """Texts as an encoder gives them to a denoiser."""

    states: Tensor
    """`(n, length, width)`"""
    mask: Tensor
    """`(n, length)` bool, false at the padding."""
    offsets: list[list[tuple[int, int]]]
    """The characters that each token covers; none for the ends and the padding."""


@dataclass
class MeasuredEncoder:
    """An encoder and how its pipeline calls it."""

    kind: str
    model: nn.Module
    tokenizer: Any
    length: int
    masked: bool
    """Whether it is given the mask; Stable Diffusion gives CLIP none."""

    @torch.no_grad()
    def read(self, texts: Sequence[str], length: int | None = None) -> Read:
        """The final states, in float32."""
        states, masks = [], []
        offsets: list[list[tuple[int, int]]] = []
        for first in range(0, len(texts), BATCH):
            batch = self.tokenizer(
                list(texts[first : first + BATCH]),
                padding="max_length",
                truncation=True,
                max_length=length or self.length,
                return_tensors="pt",
                return_offsets_mapping=True,
            )
            offsets += [[(a, b) for a, b in row] for row in batch["offset_mapping"].tolist()]
            mask = batch["attention_mask"]
            given = {"attention_mask": mask} if self.masked else {}
            found = self.model(input_ids=batch["input_ids"], **given)
            states.append(found.last_hidden_state.float())
            masks.append(mask.bool())
        return Read(torch.cat(states), torch.cat(masks), offsets)

    def clone(self) -> nn.Module:
        """The encoder again, with weights of its own and without hooks."""
        twin = copy.deepcopy(self.model)
        for module in twin.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        return twin.eval()


def load_measured(kind: str) -> MeasuredEncoder:
    """`bert`, the real encoder, or one of those distilled from it: `clip`, `t5`, `qwen3`."""
    if kind == "bert":
        from transformers import BertModel

        model = BertModel.from_pretrained(encoder_folder(), add_pooling_layer=False).float().eval()
        return MeasuredEncoder(kind, model, load_tokenizer(), 32, masked=True)
    source = ROOT / "worlds" / "encoders" / "src"
    if str(source) not in sys.path:
        sys.path.insert(0, str(source))
    from diffusers_erasepro_encoders import load_encoder

    model, tokenizer = load_encoder(kind)
    length = 77 if kind == "clip" else 32
    tokenizer.model_max_length = length
    return MeasuredEncoder(kind, model, tokenizer, length, masked=kind != "clip")


def pipeline_around(model: nn.Module, tokenizer: Any, *, masked: bool = True) -> Any:
    """A stock pipeline that reads this encoder; what it draws with is tiny and random."""
    torch.manual_seed(0)
    model.config.use_attention_mask = masked
    width = model.config.hidden_size
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=model,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def span_of(text: str, word: str, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """First and last token of `word` in `text`; a token may begin with the space before it."""
    start = text.lower().index(word.lower())
    end = start + len(word)
    at = [i for i, (a, b) in enumerate(offsets) if b > max(a, start) and a < end]
    return at[0], at[-1]


def counterparts(
    texts: Sequence[str], target: str, anchors: Sequence[str], anchor: str, found: Read, other: Read
) -> Iterator[tuple[int, int, int, str]]:
    """Row, position, the anchor's position and kind of place of every token and padding."""
    length = found.mask.shape[1]
    for row, (text, instead) in enumerate(zip(texts, anchors, strict=True)):
        t0, t1 = span_of(text, target, found.offsets[row])
        a0, a1 = span_of(instead, anchor, other.offsets[row])
        last = int(found.mask[row].sum()) - 1
        for at in range(length):
            there = at if at < t0 else at + a1 - t1
            if t0 <= at <= t1:
                yield row, at, max(a0, a1 - (t1 - at)), "name"
            elif at > last:
                if 0 <= there < length:
                    yield row, at, there, "padding"
            else:
                first, end = found.offsets[row][at]
                yield row, at, there, "other" if end > first else "ends"


def relative_movement(after: Tensor, before: Tensor) -> Tensor:
    """||after - before|| / ||before|| of each token."""
    return (after - before).norm(dim=-1) / before.norm(dim=-1)


class Unedited:
    """Everything read before an edit, to compare with what is read after it."""

    def __init__(
        self,
        encoder: MeasuredEncoder,
        cases: Sequence[Any],
        captions: Sequence[str],
        words: Sequence[str] = (),
    ) -> None:
        self.cases = cases
        self.captions = captions
        self.words = words
        frames = measuring_stick().HELD_OUT
        self.said = {}
        self.read = {}
        self.instead = {}
        self.spared = {}
        for case in cases:
            targets = [frame.format(case.target) for frame in frames[case.kind]]
            anchors = [frame.format(case.anchor) for frame in frames[case.kind]]
            self.said[case.target] = targets, anchors
            self.read[case.target] = encoder.read(targets)
            self.instead[case.target] = encoder.read(anchors)
            near = [case.known, case.unknown]
            self.spared[case.target] = [encoder.read(texts) for texts in near if texts]
        self.watched = encoder.read(captions)
        self.plain = encoder.read([f"a {word}" for word in words], 12) if words else None

    def left(
        self, encoder: MeasuredEncoder, case: Any, named: str | None = None
    ) -> dict[str, float]:
        """What remains of the gap to the anchor by kind of place.

        Args:
            encoder: After the edit.
            case: What was erased.
            named: Another spelling of the name, to be measured instead.
        """
        texts, anchors = self.said[case.target]
        before = self.read[case.target]
        if named:
            # only the name is spelled anew, not what else the phrase says
            frames = measuring_stick().HELD_OUT[case.kind]
            texts = [frame.format(named) for frame in frames]
            before = self.spelled[named]
        other = self.instead[case.target]
        now = encoder.read(texts)
        rest = dict.fromkeys(PLACES, 0.0)
        gap = dict.fromkeys(PLACES, 0.0)
        found = counterparts(texts, named or case.target, anchors, case.anchor, before, other)
        for row, at, there, place in found:
            wanted = other.states[row, there]
            rest[place] += float((now.states[row, at] - wanted).norm())
            gap[place] += float((before.states[row, at] - wanted).norm())
        return {f"left {place}": rest[place] / gap[place] for place in PLACES if gap[place] > 1e-3}

    def spell(self, encoder: MeasuredEncoder, case: Any, spellings: Sequence[str]) -> None:
        """Reads other spellings of a name before the edit."""
        frames = measuring_stick().HELD_OUT[case.kind]
        self.spelled = {}
        for named in spellings:
            self.spelled[named] = encoder.read([frame.format(named) for frame in frames])

    def near(self, encoder: MeasuredEncoder, case: Any) -> dict[str, float]:
        """How far phrases moved that share a word or a meaning with the name."""
        found = {}
        texts = [texts for texts in (case.known, case.unknown) if texts]
        for name, phrases, before in zip(
            ("told", "untold"), texts, self.spared[case.target], strict=False
        ):
            moved = relative_movement(encoder.read(phrases).states, before.states)[before.mask]
            found[f"near {name}"] = float(moved.mean())
            found["near worst"] = float(moved.max())
        return found

    def drift(self, encoder: MeasuredEncoder) -> dict[str, float]:
        """How far captions moved that name nothing that was erased, and in how many it fired."""
        last = [case.target.split()[-1].lower() for case in self.cases]
        after = encoder.read(self.captions)
        moved = relative_movement(after.states, self.watched.states)
        means, fired = [], 0
        for row, text in enumerate(self.captions):
            if not any(word in text.lower() for word in last):
                own = moved[row][self.watched.mask[row]]
                means.append(own.mean())
                fired += bool((own > FIRES).any())
        found = torch.stack(means)
        return {
            "drift": float(found.mean()),
            "q99": float(found.quantile(0.99)),
            "worst": float(found.max()),
            "fires captions": float(fired),
            "captions": float(len(means)),
        } | self._fired_words(encoder)

    def _fired_words(self, encoder: MeasuredEncoder) -> dict[str, float]:
        if self.plain is None:
            return {}
        after = encoder.read([f"a {word}" for word in self.words], 12)
        moved = relative_movement(after.states, self.plain.states)
        own = {part for case in self.cases for part in case.target.lower().split()}
        fired = 0
        for row, word in enumerate(self.words):
            fires = (moved[row][self.plain.mask[row]] > FIRES).any()
            fired += bool(fires) and word not in own
        return {"fires words": float(fired)}

    def measure(self, encoder: MeasuredEncoder) -> dict[str, float]:
        """All of it, the mean over the cases where there are several."""
        rows = [self.left(encoder, case) | self.near(encoder, case) for case in self.cases]
        keys = dict.fromkeys(key for row in rows for key in row)
        found = {}
        for key in keys:
            values = [row[key] for row in rows if key in row]
            found[key] = max(values) if key == "near worst" else sum(values) / len(values)
        return found | self.drift(encoder)
