"""How selective an edit is, on an encoder that others trained and on three distilled from it.

    python benchmarks/selective.py                       # all sections, going on where it stopped
    python benchmarks/selective.py --sections names      # some of them
    python benchmarks/selective.py --names cat gun       # of each section, these names
    python benchmarks/selective.py --draw                # the page alone, from the lines

The figures of `names` are those of the frozen tool, `../shared/tools/real_encoder.py`, by its own
functions, phrases and captions, but that it asks every eighth word; the other sections take the
same measures from `text_encoders.py`. An edit is made once for all sections of a start, so that
sections asked for together cost little more than the first.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor, nn
from tqdm.auto import tqdm

from common import commit, keep_line, kept_lines, provenance
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.errors import ErasureError
from selective_names import (
    ANCHORS_AWKWARD,
    COMPOUNDS,
    SPELLINGS,
    STYLE_CAPTIONS,
    SYNONYMS,
    Named,
)
from text_encoders import (
    CAPTIONS,
    TOOL,
    MeasuredEncoder,
    Unedited,
    load_measured,
    measuring_stick,
    pipeline_around,
)

ROWS: dict[str, dict[str, Any]] = {
    "former default": {},
    "default": {},
    "gates": {"layers": ("gates",)},
    "rows, gates": {"layers": ("embedding", "gates")},
    "rows, gates, last block": {"layers": ("embedding", "gates", -1)},
    "rows, gates, else block 0": {"layers": ("embedding", "gates", "otherwise:0")},
    "rows, gates, listed alone": {
        "layers": ("embedding", "gates", "otherwise:0", -1),
        "soft_weight": 0.0,
    },
    "blocks": {"layers": (0, -1)},
}
"""Row -> options of `erase`."""
FORMER = {"object": ("neurons", -1), "style": ("eos_neurons", -1)}
"""Kind -> layers of the default until 28 November 2026; (0, -1) of all others."""
SKETCHES = {
    "sketch: UCE": "uce",
    "sketch: gates": "gates",
    "sketch: rows": "swap",
    "sketch: linear": "linear",
}
"""Row -> function of the tool."""
GIVEN = 2000
WATCHED = slice(4000, 4500)
FEWER = slice(4000, 4150)
"""Captions of the sections that measure many edits."""
STRENGTHS = (0.5, 0.8, 1.2)
APART = (2, 5, 10)
STYLE_STRENGTHS = (0.0, 0.5, 1.0, 1.5)
STYLE_STEPS, STYLE_TEXTS = 25, 24
FIRST_DETECTOR = "encoder.layer.0.intermediate.dense.weight"
"""Whose rows say which neurons an edit takes."""
RESETS = (0, 1, 2, 4, 8, 16, 32)
Line = dict[str, Any]


class Failed(Exception):
    """An edit that the product refuses; the reason is a line of its own."""


def options_of(row: str, cases: Sequence[Any]) -> dict[str, Any]:
    """What `erase` is asked for some names in a row."""
    if row != "former default":
        return ROWS[row]
    return {"layers": {case.target: FORMER.get(case.kind, (0, -1)) for case in cases}}


def spec_of(cases: Sequence[Any], captions: Sequence[str]) -> ErasureSpec:
    """What the product is asked for: never what is measured."""
    concepts = []
    for case in cases:
        concepts.append(
            Concept(case.target, anchor=case.anchor, templates=case.kind, near=case.known)
        )
    return ErasureSpec(tuple(concepts), preserve=tuple(captions))


def edit_in_place(
    encoder: MeasuredEncoder, cases: Sequence[Any], captions: Sequence[str], options: dict[str, Any]
) -> Line:
    """Erase with the product, and write the edited weights into the encoder.

    Returns:
        What the report says, for the line.

    Raises:
        Failed: The product refuses.
    """
    twin = encoder.clone()
    pipe = erasable(pipeline_around(twin, encoder.tokenizer, masked=encoder.masked))
    began = time.perf_counter()
    try:
        adapter = erase(pipe, spec_of(cases, captions), measure=False, **options)
        seconds = time.perf_counter() - began
        pipe.load_erasure_adapter(adapter)
    except (ErasureError, TypeError) as error:
        raise Failed(f"{type(error).__name__}: {error}") from error
    edited = dict(pipe.text_encoder.named_parameters())
    with torch.no_grad():
        for name, weight in encoder.model.named_parameters():
            weight.copy_(edited[name])
    layers = [layer.name for layer in adapter.report.layers]
    return {"seconds": seconds, "layers": layers, "notes": list(adapter.report.notes)}


class Restored:
    """An encoder that goes back to its weights after every edit."""

    def __init__(self, encoder: MeasuredEncoder) -> None:
        self.encoder = encoder
        self.base = copy.deepcopy(encoder.model.state_dict())

    def __enter__(self) -> MeasuredEncoder:
        return self.encoder

    def __exit__(self, *_: object) -> None:
        self.encoder.model.load_state_dict(self.base)


class Sections:
    """What can be measured; each gives (key, function that measures a line)."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.stick = measuring_stick(args.tool)
        self.captions = args.captions.read_text(encoding="utf-8").splitlines()
        self.given = self.captions[:GIVEN]
        self.cases = [*self.stick.CASES, *(self._case(case) for case in ANCHORS_AWKWARD)]
        if args.names:
            self.cases = [case for case in self.cases if case.target in args.names]
        self.tools_own = [case for case in self.stick.CASES if case in self.cases]
        chosen = args.rows or (*SKETCHES, *ROWS)
        self.sketches = {row: SKETCHES[row] for row in SKETCHES if row in chosen}
        self.methods = {row: ROWS[row] for row in ROWS if row in chosen}
        self._encoders: dict[str, Restored] = {}
        self._unedited: dict[Any, Unedited] = {}
        self._edits: dict[str, Line] = {}
        self._bench: Any = None

    def _case(self, named: Named) -> Any:
        return self.stick.Case(named.target, named.anchor, named.kind, named.known, named.unknown)

    def restored(self, kind: str) -> Restored:
        if kind not in self._encoders:
            self._encoders[kind] = Restored(load_measured(kind))
        return self._encoders[kind]

    def unedited(self, kind: str, cases: Sequence[Any], captions: slice) -> Unedited:
        key = kind, tuple(case.target for case in cases), captions.stop
        if key not in self._unedited:
            encoder = self.restored(kind).encoder
            vocabulary = self.restored("bert").encoder.tokenizer.get_vocab()
            words = plain_words_of(vocabulary)[:: self.args.every]
            self._unedited[key] = Unedited(encoder, cases, self.captions[captions], words)
        return self._unedited[key]

    # ------------------------------------------------------------------------- the frozen tool

    def names(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """The tool's own figures, for its sketches and for the product.

        A line takes about half a minute of a core.
        """
        for case in self.cases:
            for row in (*self.sketches, *self.methods):
                yield f"{case.target} / {row}", lambda c=case, r=row: self._by_tool(c, r)

    def _by_tool(self, case: Any, row: str) -> Line:
        told: Line = {}
        sketch = self.sketches.get(row)
        if sketch is None:
            told = self.edited("bert", case, row)
            changed = told.pop("changed")

        def edit(model: nn.Module, *_: object) -> None:
            model.load_state_dict(changed, strict=False)

        make = edit if sketch is None else getattr(self.stick, sketch)
        found = self._frozen_bench().measure(case, make)
        return {**found, **told, "case": case.target, "row": row}

    def _frozen_bench(self) -> Any:
        """The tool's own, which asks some words of the vocabulary instead of all."""
        if self._bench is None:
            every = self.args.every_of_tool

            def words(self: Any, prefix: str, block: int | None) -> tuple[list[str], Tensor]:
                if block is not None:
                    return stock(self, prefix, block)
                vocabulary = self.tokenizer.get_vocab
                some = plain_words_of(vocabulary())[::every]
                self.tokenizer.get_vocab = lambda: dict.fromkeys(some)
                try:
                    return stock(self, prefix, block)
                finally:
                    self.tokenizer.get_vocab = vocabulary

            stock = self.stick.Encoder.words
            self.stick.Encoder.words = words
            self._bench = self.stick.Bench(self.captions)
        return self._bench

    def edited(self, kind: str, case: Any, row: str) -> Line:
        """The weights that an edit changes ("changed"), and what its report says.

        Made once per commit, also if the benchmark is started again.

        Raises:
            Failed: The product refuses.
        """
        key = f"{kind}, {case.target}, {row}"
        if key not in self._edits:
            file = self.args.edits / f"{commit()}, {key}.pt"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(self._make(kind, case, row), file)
            self._edits[key] = torch.load(file, weights_only=True)
        return dict(self._edits[key])

    def _make(self, kind: str, case: Any, row: str) -> Line:
        restored = self.restored(kind)
        with restored as encoder:
            told = edit_in_place(encoder, [case], self.given, options_of(row, [case]))
            changed = {}
            for name, value in encoder.model.state_dict().items():
                if not torch.equal(value, restored.base[name]):
                    changed[name] = value.clone()
        return told | {"changed": changed}

    # ------------------------------------------------------------------------- many at once

    def many(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """20 and 100 names whose tokens are common words, in one edit; and the first alone."""
        for count in self.args.counts:
            for row in self.methods:
                yield f"{count} / {row}", lambda n=count, r=row: self._many(n, r)

    def _many(self, count: int, row: str) -> Line:
        cases = []
        for name in COMPOUNDS[:count]:
            cases.append(self.stick.Case(name, "stone", "object", (), ()))
        before = self.unedited("bert", cases, WATCHED)
        with self.restored("bert") as encoder:
            told = edit_in_place(encoder, cases, self.given, options_of(row, cases))
            return {**before.measure(encoder), **told, "names": count, "row": row}

    # ------------------------------------------------------------------------- spellings

    def spellings(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """Misspelt, split, joined, in capitals, with accents, plural: measured, not solved for."""
        for case in self.tools_own:
            for row in self.methods:
                yield f"{case.target} / {row}", lambda c=case, r=row: self._spelled(c, r)

    def _spelled(self, case: Any, row: str) -> Line:
        before = self.unedited("bert", [case], FEWER)
        with self.restored("bert") as encoder:
            before.spell(encoder, case, list(SPELLINGS[case.target].values()))
            told = self._apply(encoder, case, row)
            found = {}
            for how, named in SPELLINGS[case.target].items():
                found[f"{how}: {named}"] = before.left(encoder, case, named)["left name"]
        return {"spelled": found, **told, "case": case.target, "row": row}

    def _apply(self, encoder: MeasuredEncoder, case: Any, row: str) -> Line:
        """Writes an edit into the encoder.

        Returns:
            What its report says.
        """
        told = self.edited(encoder.kind, case, row)
        encoder.model.load_state_dict(told.pop("changed"), strict=False)
        return told

    # ------------------------------------------------------------------------- made apart

    def apart(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """Edits of one name each, made apart and added up as stock LoRA loaders do."""
        for count in APART:
            for row in self.methods:
                yield f"{count} / {row}", lambda n=count, r=row: self._added_up(n, r)

    def _added_up(self, count: int, row: str) -> Line:
        restored = self.restored("bert")
        cases = self._erasable(count, row)
        before = self.unedited("bert", cases, FEWER)
        sums: dict[str, Tensor] = {}
        touched = []
        alone: dict[str, float] = {}
        for case in cases:
            changed = self.edited("bert", case, row)["changed"]
            with restored as encoder:
                encoder.model.load_state_dict(changed, strict=False)
                for place, left in before.left(encoder, case).items():
                    alone[f"alone {place}"] = alone.get(f"alone {place}", 0.0) + left / count
            for name, value in changed.items():
                delta = value - restored.base[name]
                sums[name] = sums.get(name, 0) + delta
                if name == FIRST_DETECTOR:
                    touched += delta.abs().sum(1).nonzero()[:, 0].tolist()
        with restored as encoder:
            added = {name: restored.base[name] + delta for name, delta in sums.items()}
            encoder.model.load_state_dict(added, strict=False)
            found = before.measure(encoder)
        twice = len(touched) - len({*touched})
        return {**found, **alone, "taken": len(touched), "taken twice": twice, "row": row}

    def _erasable(self, count: int, row: str) -> list[Any]:
        """The first cases that the product does not refuse: the tool's own, then compounds."""
        more = [self.stick.Case(name, "stone", "object", (), ()) for name in COMPOUNDS[1:]]
        found = []
        for case in (*self.stick.CASES, *more):
            with suppress(Failed):
                self.edited("bert", case, row)
                found.append(case)
            if len(found) == count:
                break
        return found

    # ------------------------------------------------------------------------- precision, company

    def precision(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """16 and 8 bits, merged into them, and a LoRA scale other than one."""
        hows = ["float32", "float16", "bfloat16", "merged float16", "merged bfloat16"]
        hows += ["beside int8", "merged int8", "beside fp8", "merged fp8"]
        hows += [f"scale {strength}" for strength in STRENGTHS]
        for case in self.tools_own:
            for row in self.methods:
                for how in hows:
                    key = f"{case.target} / {row} / {how}"
                    yield key, lambda c=case, r=row, h=how: self._precise(c, r, h)

    def _precise(self, case: Any, row: str, how: str) -> Line:
        told = self.edited("bert", case, row)
        base = self.restored("bert").base
        edited = base | told.pop("changed")
        word, _, rest = how.partition(" ")
        dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(how, torch.float32)
        narrow = PRECISIONS.get(rest, same_values)
        if word == "merged":
            edited = narrow(edited)
        elif word == "beside":  # as a hook adds it to weights that hold 8 bits
            rounded = narrow(base)
            edited = {k: rounded[k] + (v - base[k]) for k, v in edited.items()}
        elif word == "scale":
            edited = {k: base[k].lerp(v, float(rest)) for k, v in edited.items()}
        found = self._beside(case, narrow(base), edited, dtype)
        return {**found, **told, "case": case.target, "row": row, "how": how}

    def _beside(
        self, case: Any, base: dict[str, Tensor], edited: dict[str, Tensor], dtype: torch.dtype
    ) -> Line:
        """An edit compared with another base than the one that it was made for."""
        kept = self.restored("bert").encoder
        twin = MeasuredEncoder("bert", kept.clone().to(dtype), kept.tokenizer, 32, masked=True)
        twin.model.load_state_dict(base)
        before = Unedited(twin, [case], self.captions[FEWER])
        twin.model.load_state_dict(edited)
        return before.measure(twin)

    def style(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """Beside a style LoRA on the encoder, which the edit has never seen."""
        for case in self.tools_own:
            for row in self.methods:
                for strength in STYLE_STRENGTHS:
                    key = f"{case.target} / {row} / {strength}"
                    yield key, lambda c=case, r=row, s=strength: self._styled(c, r, s)

    def _styled(self, case: Any, row: str, strength: float) -> Line:
        told = self.edited("bert", case, row)
        base = self.restored("bert").base
        edited = base | told.pop("changed")
        change = style_lora(self.restored("bert").encoder, self.given)
        found = self._beside(
            case,
            moved_by(base, change, strength),
            moved_by(edited, change, strength),
            torch.float32,
        )
        return {**found, **told, "case": case.target, "row": row, "strength": strength}

    # ------------------------------------------------------------------------- an attacker

    def resets(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """The most changed rows go back to what they were: how much of the name comes back."""
        for case in self.tools_own:
            for row in self.methods:
                yield f"{case.target} / {row}", lambda c=case, r=row: self._reset(c, r)

    def _reset(self, case: Any, row: str) -> Line:
        with self.restored("bert") as encoder:
            base = self._encoders["bert"].base
            before = Unedited(encoder, [case], self.captions[4000:4010])
            told = self._apply(encoder, case, row)
            edited = copy.deepcopy(encoder.model.state_dict())
            order = changed_rows(base, edited)
            found = {}
            for count in RESETS:
                state = {name: value.clone() for name, value in edited.items()}
                for name, dim, at in order[:count]:
                    state[name].select(dim, at).copy_(base[name].select(dim, at))
                encoder.model.load_state_dict(state)
                found[str(count)] = before.left(encoder, case)["left name"]
        return {"left": found, "rows": len(order), **told, "case": case.target, "row": row}

    # ------------------------------------------------------------------------- depth

    def depth(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """Synonyms that were not listed against near misses, by the block that is edited."""
        for target in SYNONYMS:
            for block in range(6):
                yield f"{target} / {block}", lambda t=target, b=block: self._deep(t, b)

    def _deep(self, target: str, block: int) -> Line:
        case = next(case for case in self.stick.CASES if case.target == target)
        before = self.unedited("bert", [case], FEWER)
        with self.restored("bert") as encoder:
            before.spell(encoder, case, SYNONYMS[target])
            told = edit_in_place(encoder, [case], self.given, {"layers": (block,)})
            left = [before.left(encoder, case, word)["left name"] for word in SYNONYMS[target]]
            found = before.left(encoder, case) | before.near(encoder, case)
            found |= before.drift(encoder)
        left_synonyms = sum(left) / len(left)
        return {**found, **told, "left synonyms": left_synonyms, "case": target, "block": block}

    # ------------------------------------------------------------------------- other encoders

    def encoders(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """The same names on encoders of other classes, distilled from the real one."""
        for kind in self.args.encoders:
            for case in self.cases:
                for row in self.methods:
                    key = f"{kind} / {case.target} / {row}"
                    yield key, lambda k=kind, c=case, r=row: self._elsewhere(k, c, r)

    def _elsewhere(self, kind: str, case: Any, row: str) -> Line:
        before = self.unedited(kind, [case], FEWER)
        with self.restored(kind) as encoder:
            told = edit_in_place(encoder, [case], self.given, options_of(row, [case]))
            found = before.measure(encoder)
        return {**found, **told, "encoder": kind, "case": case.target, "row": row}


def plain_words_of(vocabulary: Iterable[str]) -> list[str]:
    """Whole words of a vocabulary, as the tool takes them."""
    return sorted(word for word in vocabulary if word.isalpha() and len(word) > 1)


def same_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are."""
    return state


def rounded_to(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A function that gives weights as a checkpoint of this dtype keeps them."""

    def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, value in state.items():
            found[name] = value.to(dtype).float() if value.is_floating_point() else value
        return found

    return rounded


def in_int8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's linears in 8-bit integers with a scale per row, as weight-only quantisers."""
    found = {}
    for name, value in state.items():
        found[name] = value
        if value.ndim == 2 and "embeddings" not in name:
            scale = value.abs().amax(1, keepdim=True) / 127
            found[name] = (value / scale).round() * scale
    return found


def in_fp8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's linears in 8-bit floats, as layerwise casting stores them."""
    found = {}
    for name, value in state.items():
        narrow = value.ndim == 2 and "embeddings" not in name
        found[name] = value.to(torch.float8_e4m3fn).float() if narrow else value
    return found


PRECISIONS = {
    "float16": rounded_to(torch.float16),
    "bfloat16": rounded_to(torch.bfloat16),
    "int8": in_int8,
    "fp8": in_fp8,
}
"""By name, weights as they come back from it."""


def moved_by(
    state: dict[str, Tensor], change: dict[str, Tensor], strength: float
) -> dict[str, Tensor]:
    """Weights with a LoRA of this strength beside."""
    found = dict(state)
    for name, delta in change.items():
        found[name] = state[name] + strength * delta
    return found


def style_lora(encoder: MeasuredEncoder, captions: Sequence[str]) -> dict[str, Tensor]:
    """A LoRA of rank 4 on every linear of attention that turns captions into their style phrase.

    Trained with Adam, seeded; kept for the process.
    """
    if not hasattr(style_lora, "kept"):
        style_lora.kept = _train_style(encoder, captions)
    return style_lora.kept


def _train_style(encoder: MeasuredEncoder, captions: Sequence[str]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    twin = encoder.clone().requires_grad_(False)
    pairs = {}
    for name, weight in encoder.model.named_parameters():
        if "attention" in name and weight.ndim == 2:
            rows, columns = weight.shape
            down = torch.randn(4, columns) / columns**0.5
            pairs[name] = (torch.zeros(rows, 4), down)
    trained = [part.requires_grad_() for pair in pairs.values() for part in pair]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    texts = [f"{caption} {STYLE_CAPTIONS}" for caption in captions[:STYLE_TEXTS]]
    with torch.no_grad():
        wanted = (encoder.read(texts).states * encoder.read(texts).mask[..., None]).sum(1)
        wanted /= encoder.read(texts).mask.sum(1, keepdim=True)
    batch = encoder.tokenizer(
        list(captions[:STYLE_TEXTS]),
        padding="max_length",
        truncation=True,
        max_length=32,
        return_tensors="pt",
    )
    for _ in range(STYLE_STEPS):
        weights = {
            name: encoder.model.get_parameter(name).detach() + up @ down
            for name, (up, down) in pairs.items()
        }
        found = torch.func.functional_call(twin, weights, kwargs=dict(batch)).last_hidden_state
        mask = batch["attention_mask"][..., None]
        loss = ((found * mask).sum(1) / mask.sum(1) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: (up @ down).detach() for name, (up, down) in pairs.items()}


def changed_rows(base: dict[str, Tensor], edited: dict[str, Tensor]) -> list[tuple[str, int, int]]:
    """Rows or columns of matrices by how much of themselves an edit changed, most first.

    Of each matrix those that hold more of its change in fewer.
    """
    found = []
    for name, value in edited.items():
        if value.ndim != 2 or torch.equal(value, base[name]):
            continue
        sizes = []
        for dim in (0, 1):
            change = (value - base[name]).norm(dim=1 - dim)
            sizes.append(change / base[name].norm(dim=1 - dim).clamp_min(1e-6))
        dim = 0 if sizes[0].max() >= sizes[1].max() else 1
        for at in sizes[dim].nonzero()[:, 0].tolist():
            found.append((float(sizes[dim][at]), name, dim, at))
    return [row[1:] for row in sorted(found, reverse=True)]


def run(sections: Sections, args: argparse.Namespace) -> None:
    """Measure what the lines lack."""
    where = provenance(0)
    for section in args.sections:
        path = args.out / f"selective-{section}.jsonl"
        # what was refused may be possible by now
        done = {line["key"] for line in kept_lines(path) if "refused" not in line}
        todo = [item for item in getattr(sections, section)() if item[0] not in done]
        for key, measure in tqdm(todo, desc=section):
            try:
                line = measure()
            except Failed as error:
                line = {"refused": str(error)}
            keep_line(path, {"key": key, **line, "where": where})


def main() -> None:
    names = ("names", "spellings", "resets", "precision", "apart", "many", "style", "depth")
    names = (*names, "encoders")
    results = Path(__file__).with_name("results")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="*", default=names, choices=names)
    parser.add_argument(
        "--rows", nargs="*", choices=(*SKETCHES, *ROWS), help="default: all; sketches in `names`"
    )
    parser.add_argument("--names", nargs="*", help="to erase; default: all")
    parser.add_argument("--counts", nargs="*", type=int, default=(1, 20, 100), help="of `many`")
    parser.add_argument("--encoders", nargs="*", default=("clip", "t5", "qwen3"))
    parser.add_argument("--tool", type=Path, default=TOOL)
    parser.add_argument("--captions", type=Path, default=CAPTIONS)
    parser.add_argument("--every", type=int, default=20, help="of the words but in `names`")
    parser.add_argument("--every-of-tool", type=int, default=8, help="of the words in `names`")
    parser.add_argument("--out", type=Path, default=results)
    edits = results.parents[1] / "runs" / "selective"
    parser.add_argument("--edits", type=Path, default=edits, help="where edits are kept")
    parser.add_argument("--page", type=Path, default=results / "selective.md")
    parser.add_argument("--draw", action="store_true", help="the page alone, from the lines")
    args = parser.parse_args()
    # long phrases of the product are cut at the 32 tokens that this encoder's pipeline reads
    warnings.filterwarnings("ignore", message=".*this world reads the first")
    logging.set_verbosity_error()
    if not args.draw:
        run(Sections(args), args)
    from selective_page import draw_page

    image = args.page.parent / "images" / "selective-trade.png"
    args.page.write_text(draw_page(args.out, image), encoding="utf-8")


if __name__ == "__main__":
    main()
