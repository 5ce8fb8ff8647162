"""What an erasure is worth: images generated, judged and counted, in shards that resume."""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from .. import glyphs
from ..adapters.adapter import ErasureAdapter
from ..baselines import find_method
from ..config.spec import Concept, ErasureSpec
from ..config.text_files import escape_on_console, read_text_file
from ..errors import EvaluationError
from ..linalg.low_rank import LowRank
from ..loaders.mixin import erasable
from .metrics import feature_change, pixel_change
from .results import UNEDITED, aggregate, check_same_run, format_table, open_shard, read_lines
from .suites import KINDS, Case, Cases, Suite, find_suite, with_parts

CHUNK = 8
"""Images generated together; fixed, as the size of a batch changes an image's last bits."""
FEWEST = 4
"""Images of the unedited pipeline from which a judge that sees nothing in them is no judge."""
STEPS = 15
GUIDANCE = 3.0
SCRAMBLED = "scrambled"
OTHER = "other concept erased"
"""These two and `UNEDITED` are the control rows."""


def evaluate(
    pipe: Any,
    spec: ErasureSpec | Concept,
    methods: Mapping[str, str | ErasureAdapter],
    suite: str | Suite = "glyphs",
    *,
    n: int = 24,
    seed: int = 0,
    out: Path | None = None,
    controls: bool = True,
) -> dict[str, dict[str, Any]]:
    """Generate, judge and count every row of `methods` beside the controls.

    Under `accelerate launch` each process generates its share and the first returns all of it.
    What `out` holds already is not generated again.

    Args:
        pipe: The unedited pipeline; it stays as it is.
        spec: What the methods erase.
        methods: Row name -> name of a method (`baselines.METHODS`) or a finished adapter.
        suite: What to generate and who judges.
        n: Images per kind of prompt.
        seed: Of prompts and noise.
        out: Folder of the JSON lines; None keeps them in memory.
        controls: Whether "unedited", "other concept erased" and "scrambled" are rows too.

    Returns:
        Row -> measure -> `Estimate` or number, as `format_table` prints them.

    Raises:
        EvaluationError: A suite without its parts, a pipeline or concept that its judge does not
            know, no image judged, lines of another run in `out`.
        ConceptSpecError: No method of that name.
    """
    spec = ErasureSpec((spec,)) if isinstance(spec, Concept) else spec
    suite = find_suite(suite) if isinstance(suite, str) else with_parts(suite)
    if suite.check:
        suite.check(pipe, spec)
    rows = _list_rows(methods, controls)
    state = PartialState()
    evaluation = Evaluation(erasable(pipe), spec, suite, n, seed, state)
    lines = list(read_lines(out)) if out else []
    check_same_run(lines, evaluation.header(), out)
    with open_shard(out, state.process_index, lines) as write:
        if not any("run" in line for line in lines) and state.is_main_process:
            write({"run": evaluation.header()})
        evaluation.generate_missing(rows, lines, write)
    state.wait_for_everyone()
    found = list(read_lines(out)) if out else lines
    check_judge_sees(found)
    return aggregate(found)


def check_judge_sees(lines: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a judge that sees the concept in no image of the unedited pipeline.

    Every row would look perfectly erased.

    Raises:
        EvaluationError: It sees none in `FEWEST` images or more.
    """
    hits = []
    for line in lines:
        if line.get("row") == UNEDITED and line.get("kind") == "target":
            hits.append(line["hit"])
    if len(hits) >= FEWEST and not any(hits):
        raise EvaluationError(
            f"the judge sees the concept in none of {len(hits)} images of the unedited pipeline, "
            "so it cannot tell what an erasure does; give a judge that knows the concept, or "
            "prompts that show it"
        )


def _list_rows(methods: Mapping[str, Any], controls: bool) -> dict[str, Any]:
    """Row -> a method's name, an adapter, or None for the unedited pipeline; controls around."""
    if not methods:
        raise EvaluationError("no method to evaluate; give at least one name or adapter")
    for method in methods.values():
        if isinstance(method, str):
            find_method(method)  # an unknown name is an error before the first image
    negative = {OTHER: OTHER, SCRAMBLED: SCRAMBLED} if controls else {}
    return {UNEDITED: None, **methods, **negative}


@dataclass(frozen=True)
class Evaluation:
    """One run: what is generated, by which process, and who judges it."""

    pipe: Any
    spec: ErasureSpec
    suite: Suite
    n: int
    seed: int
    state: Any
    """accelerate's `PartialState`: this process among all."""

    @cached_property
    def cases(self) -> Cases:
        assert self.suite.cases is not None
        cases = self.suite.cases(self.pipe, self.spec, self.n, self.seed)
        if missing := [kind for kind in KINDS if not cases.get(kind)]:
            raise EvaluationError(
                f"with n={self.n} the suite {self.suite.name!r} has no prompt of the kind "
                f"{missing[0]!r}; ask for more, such as n={max(8, 2 * self.n)}"
            )
        if len(cases["other"]) < 2:
            raise EvaluationError(
                f"with n={self.n} the suite {self.suite.name!r} has one prompt of the kind "
                "'other', and a Frechet distance needs two; ask for more, such as n=8"
            )
        return cases

    @cached_property
    def judge(self) -> Any:
        assert self.suite.judge is not None
        return self.suite.judge()

    @cached_property
    def second_judge(self) -> Any:
        """The suite's independent detector, or None."""
        return self.suite.second() if self.suite.second else None

    def header(self) -> dict[str, Any]:
        """What has to be the same for lines to belong together."""
        return {
            "suite": self.suite.name,
            "n": self.n,
            "seed": self.seed,
            "spec": self.spec.to_dict(),
            "steps": STEPS,
            "guidance": GUIDANCE,
        }

    def own_chunks(self) -> list[tuple[str, int]]:
        """Kind and first index of every chunk that this process generates, for all rows."""
        chunks: list[tuple[str, int]] = []
        for kind, cases in self.cases.items():
            chunks += [(kind, first) for first in range(0, len(cases), CHUNK)]
        return chunks[self.state.process_index :: self.state.num_processes]

    def generate_missing(
        self,
        rows: Mapping[str, Any],
        lines: Sequence[Mapping[str, Any]],
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        """Write one line per image that `lines` lack, and one per adapter."""
        done = {(line["row"], line["kind"], line["index"]) for line in lines if "kind" in line}
        described = {line["row"] for line in lines if "adapter" in line}
        chunks = self.own_chunks()
        unedited: dict[tuple[str, int], list[Image.Image]] = {}
        for row, method in rows.items():
            missing = [
                (kind, first)
                for kind, first in chunks
                if (row, kind, self._last_index(kind, first)) not in done
            ]
            if not missing and (row in described or method is None):
                continue
            adapter = self._make_adapter(method)
            if adapter and row not in described and self.state.is_main_process:
                write({"row": row, "adapter": summarize_adapter(adapter)})
            for kind, first in tqdm(missing, desc=row, leave=False, delay=2):
                cases = self.cases[kind][first : first + CHUNK]
                if (kind, first) not in unedited:
                    unedited[kind, first] = self._generate(cases, first)
                images = before = unedited[kind, first]
                if adapter:
                    with loaded(self.pipe, adapter):
                        images = self._generate(cases, first)
                for i, line in enumerate(self._judge_chunk(cases, images, before)):
                    write({"row": row, "kind": kind, "index": first + i, **line})

    def _last_index(self, kind: str, first: int) -> int:
        """The last index of the chunk that starts at `first`; with it the chunk is complete."""
        return min(first + CHUNK, len(self.cases[kind])) - 1

    def _make_adapter(self, method: str | ErasureAdapter | None) -> ErasureAdapter | None:
        if method is None or isinstance(method, ErasureAdapter):
            return method
        if method == OTHER:
            control = ErasureSpec((self.suite.control(self.spec),), preserve=self.spec.preserve)
            return find_method("erasepro")(self.pipe, control)
        if method == SCRAMBLED:
            return scramble(find_method("erasepro")(self.pipe, self.spec))
        return find_method(method)(self.pipe, self.spec)

    def _generate(self, cases: Sequence[Case], first: int) -> list[Image.Image]:
        """One image per case; `first` is the first one's index, which its noise derives from."""
        seeds = [self.seed * 100_000 + first + i for i in range(len(cases))]
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        texts = [case.text for case in cases]
        return self.pipe(
            texts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise
        ).images

    def _judge_chunk(
        self,
        cases: Sequence[Case],
        images: list[Image.Image],
        unedited: list[Image.Image],
    ) -> Iterator[dict[str, Any]]:
        """What each image shows of what was asked, and how far it is from the unedited one."""
        asked = any(case.concept for case in cases)
        second = self.second_judge(images) if self.second_judge and asked else None
        answers = self.judge(images)
        features = self.judge.features(images)
        moved = pixel_change(images, unedited)
        far = feature_change(features, self.judge.features(unedited))
        for i, case in enumerate(cases):
            line: dict[str, Any] = {"mse": moved[i], "feature": far[i]}
            line["features"] = [round(float(x), 4) for x in features[i]]
            line["right"] = [
                bool(answers[field][i] == word)
                for field, word in case.expected.items()
                if field != case.field
            ]
            if case.concept:
                answer = answers[case.field][i]
                line["hit"] = _shows(answer, case)
                line["anchor"] = None
                if case.field != "attribute":
                    line["anchor"] = bool(answer == case.concept.anchor)
                line["second"] = None if second is None else _shows(second[case.field][i], case)
            yield line


def _shows(answer: str | bool | None, case: Case) -> bool:
    """Whether a judge's answer is the concept that the case asks for."""
    assert case.concept is not None
    return answer is True if case.field == "attribute" else answer in case.concept.words


def scramble(adapter: ErasureAdapter) -> ErasureAdapter:
    """The negative control: edits of the same size that answer to other inputs."""
    edits = {}
    for i, (name, factors) in enumerate(adapter.edits.items()):
        order = torch.randperm(factors.A.shape[1], generator=torch.Generator().manual_seed(i))
        edits[name] = LowRank(factors.B, factors.A[:, order].contiguous())
    return replace(adapter, edits=edits, keys={}, goals={})  # nothing that a load would check


def summarize_adapter(adapter: ErasureAdapter) -> dict[str, Any]:
    """What the adapter's report says, its size, and this process's peak memory in MiB."""
    report = adapter.report
    names = ("listed_residual", "held_out_residual", "held_out_mean", "drift", "seconds")
    return {name: getattr(report, name) for name in names} | {
        "bytes": len(adapter.to_bytes()),
        "compression": max(layer.compression for layer in report.layers),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


@contextmanager
def loaded(pipe: Any, adapter: ErasureAdapter) -> Iterator[None]:
    """Inside, the adapter is loaded."""
    pipe.load_erasure_adapter(adapter, adapter_name="evaluated")
    try:
        yield
    finally:
        pipe.unload_erasure_adapters()


def evaluate_from_arguments(argv: Sequence[str] | None = None) -> None:
    """`[accelerate launch] -m diffusers_erasepro.evaluation.runner --spec FILE --out FOLDER`."""
    parser = argparse.ArgumentParser(
        prog="diffusers_erasepro.evaluation.runner", description=__doc__
    )
    parser.add_argument("--spec", type=Path, required=True, help="TOML of the concepts to erase")
    parser.add_argument("--methods", default="erasepro,uce", help="names, with commas between")
    parser.add_argument("--suite", default="glyphs")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the JSON lines; an interrupted run goes on there",
    )
    parser.add_argument("-n", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-controls", action="store_true")
    args = parser.parse_args(argv)
    spec = ErasureSpec.from_toml(read_text_file(args.spec))
    names = args.methods.split(",")
    find_suite(args.suite)
    found = evaluate(
        glyphs.load_pipeline(),
        spec,
        dict(zip(names, names, strict=True)),
        args.suite,
        n=args.n,
        seed=args.seed,
        out=args.out,
        controls=not args.no_controls,
    )
    if PartialState().is_main_process:
        escape_on_console()
        print(format_table(found))


if __name__ == "__main__":
    evaluate_from_arguments()
