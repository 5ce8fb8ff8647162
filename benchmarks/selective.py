"""How selective an edit is, on an encoder that others trained and on three distilled from it.

    python benchmarks/selective.py                       # all sections, going on where it stopped
    python benchmarks/selective.py --sections names      # some of them
    python benchmarks/selective.py --draw                # the page alone, from the lines

The figures of `names` are those of the frozen tool, `../shared/tools/real_encoder.py`, by its own
functions, phrases and captions; the other sections take the same measures from `text_encoders.py`.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor, nn
from tqdm.auto import tqdm

from common import keep_line, kept_lines, provenance
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
    "default": {},
    "ours": {"layers": ("embedding", "gates", -1)},
    "rows alone": {"layers": ("embedding",)},
    "gates alone": {"layers": ("gates",)},
    "last block alone": {"layers": (-1,)},
}
"""Row -> options of `erase`."""
SKETCHES = ("swap", "uce", "linear", "gates")
GIVEN = 2000
WATCHED = slice(4000, 4500)
FEWER = slice(4000, 4150)
"""Captions of the sections that measure many edits."""
STRENGTHS = (0.5, 0.8, 1.2)
STYLE_STRENGTHS = (0.0, 0.5, 1.0, 1.5)
STYLE_STEPS, STYLE_TEXTS = 25, 24
RESETS = (0, 1, 2, 4, 8, 16, 32)
Line = dict[str, Any]


class Failed(Exception):
    """An edit that the product refuses; the reason is a line of its own."""


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
        chosen = args.rows or (*SKETCHES, *ROWS)
        self.sketches = [row for row in SKETCHES if row in chosen]
        self.methods = {row: ROWS[row] for row in ROWS if row in chosen}
        self._encoders: dict[str, Restored] = {}
        self._unedited: dict[Any, Unedited] = {}
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
            words = plain_words(self.restored("bert").encoder)[:: self.args.every]
            self._unedited[key] = Unedited(encoder, cases, self.captions[captions], words)
        return self._unedited[key]

    # ------------------------------------------------------------------------- the frozen tool

    def names(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """The tool's own figures, for its sketches and for the product.

        A line takes about two minutes of a core: the tool asks every word of the vocabulary.
        """
        for case in self.cases:
            for row in (*self.sketches, *self.methods):
                yield f"{case.target} / {row}", lambda c=case, r=row: self._by_tool(c, r)

    def _by_tool(self, case: Any, row: str) -> Line:
        self._bench = self._bench or self.stick.Bench(self.captions)
        told: Line = {}

        def edit(model: nn.Module, _: Any, case: Any, captions: list[str]) -> None:
            encoder = load_measured("bert")
            encoder.model = model
            told.update(edit_in_place(encoder, [case], captions, ROWS[row]))

        found = self._bench.measure(case, getattr(self.stick, row, None) or edit)
        return {**found, **told, "case": case.target, "row": row}

    # ------------------------------------------------------------------------- many at once

    def many(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """20 and 100 names whose tokens are common words, in one edit; and the first alone."""
        for count in (1, 20, 100):
            for row in self.methods:
                yield f"{count} / {row}", lambda n=count, r=row: self._many(n, r)

    def _many(self, count: int, row: str) -> Line:
        cases = []
        for name in COMPOUNDS[:count]:
            cases.append(self.stick.Case(name, "stone", "object", (), ()))
        before = self.unedited("bert", cases, WATCHED)
        with self.restored("bert") as encoder:
            told = edit_in_place(encoder, cases, self.given, ROWS[row])
            return {**before.measure(encoder), **told, "names": count, "row": row}

    # ------------------------------------------------------------------------- spellings

    def spellings(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """Misspelt, split, joined, in capitals, with accents, plural: measured, not solved for."""
        for case in self.stick.CASES:
            for row in self.methods:
                yield f"{case.target} / {row}", lambda c=case, r=row: self._spelled(c, r)

    def _spelled(self, case: Any, row: str) -> Line:
        before = self.unedited("bert", [case], FEWER)
        with self.restored("bert") as encoder:
            before.spell(encoder, case, list(SPELLINGS[case.target].values()))
            told = edit_in_place(encoder, [case], self.given, ROWS[row])
            found = {}
            for how, named in SPELLINGS[case.target].items():
                found[f"{how}: {named}"] = before.left(encoder, case, named)["left name"]
        return {"spelled": found, **told, "case": case.target, "row": row}

    # ------------------------------------------------------------------------- precision, company

    def precision(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """16 bits, merged into 16 bits, and a LoRA scale other than one."""
        hows = ["float32", "bfloat16", "float16", "merged bfloat16", "merged float16"]
        hows += [f"scale {strength}" for strength in STRENGTHS]
        for case in self.stick.CASES[2:]:
            for row in self.methods:
                for how in hows:
                    key = f"{case.target} / {row} / {how}"
                    yield key, lambda c=case, r=row, h=how: self._precise(c, r, h)

    def _precise(self, case: Any, row: str, how: str) -> Line:
        with self.restored("bert") as encoder:
            told = self._edited_state(encoder, case, row)
            base = self._encoders["bert"].base
            edited = told.pop("state")
            twin = MeasuredEncoder("bert", encoder.clone(), encoder.tokenizer, 32, masked=True)
            dtype = getattr(torch, how.split()[-1], torch.float32)
            load(twin, base, dtype if "merged" not in how else torch.float32)
            if "merged" in how:
                load(twin, rounded_to(base, dtype), torch.float32)
            before = Unedited(twin, [case], self.captions[FEWER])
            if how.startswith("scale"):
                strength = float(how.split()[1])
                edited = {k: base[k].lerp(v, strength) for k, v in edited.items()}
            load(twin, rounded_to(edited, dtype) if "merged" in how else edited, None)
            found = before.measure(twin)
        return {**found, **told, "case": case.target, "row": row, "how": how}

    def style(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """Beside a style LoRA on the encoder, which the edit has never seen."""
        for case in self.stick.CASES[2:]:
            for row in self.methods:
                for strength in STYLE_STRENGTHS:
                    key = f"{case.target} / {row} / {strength}"
                    yield key, lambda c=case, r=row, s=strength: self._styled(c, r, s)

    def _styled(self, case: Any, row: str, strength: float) -> Line:
        with self.restored("bert") as encoder:
            told = self._edited_state(encoder, case, row)
            base = self._encoders["bert"].base
            edited = told.pop("state")
            change = style_lora(self.restored("bert").encoder, self.given)
            twin = MeasuredEncoder("bert", encoder.clone(), encoder.tokenizer, 32, masked=True)
            load(twin, moved_by(base, change, strength), torch.float32)
            before = Unedited(twin, [case], self.captions[FEWER])
            load(twin, moved_by(edited, change, strength), None)
            found = before.measure(twin)
        return {**found, **told, "case": case.target, "row": row, "strength": strength}

    def _edited_state(self, encoder: MeasuredEncoder, case: Any, row: str) -> Line:
        """The weights after an edit, made once per case and row."""
        key = "state", case.target, row
        if key not in self._unedited:
            told = edit_in_place(encoder, [case], self.given, ROWS[row])
            self._unedited[key] = told | {"state": copy.deepcopy(encoder.model.state_dict())}
            encoder.model.load_state_dict(self._encoders["bert"].base)
        return dict(self._unedited[key])

    # ------------------------------------------------------------------------- an attacker

    def resets(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """The most changed rows go back to what they were: how much of the name comes back."""
        for case in self.stick.CASES:
            for row in self.methods:
                yield f"{case.target} / {row}", lambda c=case, r=row: self._reset(c, r)

    def _reset(self, case: Any, row: str) -> Line:
        with self.restored("bert") as encoder:
            base = self._encoders["bert"].base
            before = Unedited(encoder, [case], self.captions[4000:4010])
            told = edit_in_place(encoder, [case], self.given, ROWS[row])
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
            told = edit_in_place(encoder, [case], self.given, ROWS[row])
            found = before.measure(encoder)
        return {**found, **told, "encoder": kind, "case": case.target, "row": row}


def plain_words(encoder: MeasuredEncoder) -> list[str]:
    """Whole words of the vocabulary, as the tool takes them."""
    words = encoder.tokenizer.get_vocab()
    return sorted(word for word in words if word.isalpha() and len(word) > 1)


def load(encoder: MeasuredEncoder, state: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """Weights into an encoder; `None` keeps its precision."""
    if dtype is not None:
        encoder.model.to(dtype)
    encoder.model.load_state_dict(state)


def rounded_to(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights as a checkpoint of 16 bits keeps them."""
    found = {}
    for name, value in state.items():
        found[name] = value.to(dtype).float() if value.is_floating_point() else value
    return found


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
    names = ("names", "many", "spellings", "precision", "style", "resets", "depth", "encoders")
    results = Path(__file__).with_name("results")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="*", default=names, choices=names)
    parser.add_argument(
        "--rows", nargs="*", choices=(*SKETCHES, *ROWS), help="default: all; sketches in `names`"
    )
    parser.add_argument("--encoders", nargs="*", default=("clip", "t5", "qwen3"))
    parser.add_argument("--tool", type=Path, default=TOOL)
    parser.add_argument("--captions", type=Path, default=CAPTIONS)
    parser.add_argument("--every", type=int, default=20, help="of the words but in `names`")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--page", type=Path, default=results.parents[1] / "docs" / "selective.md")
    parser.add_argument("--draw", action="store_true", help="the page alone, from the lines")
    args = parser.parse_args()
    # long phrases of the product are cut at the 32 tokens that this encoder's pipeline reads
    warnings.filterwarnings("ignore", message=".*this world reads the first")
    logging.set_verbosity_error()
    if not args.draw:
        run(Sections(args), args)
    from selective_page import draw_page

    args.page.write_text(draw_page(args.out), encoding="utf-8")


if __name__ == "__main__":
    main()
