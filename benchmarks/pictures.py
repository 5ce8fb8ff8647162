"""Erasing in the pictures world: what pictures say of ours and of its peers, in one page.

    python benchmarks/pictures.py --solve --n 12         # our edits alone: the encoder is enough
    python benchmarks/pictures.py --n 12                 # all cells, going on where it stopped
    python benchmarks/pictures.py --minutes 20           # as many pictures as that allows
    python benchmarks/pictures.py --n 200 --others 1000  # the whole page; hours
    python benchmarks/pictures.py --draw                 # page, grid and scatter, from the lines
    python benchmarks/pictures.py --readme-picture       # docs/images/pictures-before-after.png

What is planned is printed first. A line of `results/pictures.jsonl` is a cell and a row; it counts
for the weights, numbers and edits that it names, so other weights are measured anew. Edits and the
first pictures of each kind are kept in `--folder`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers.utils import logging
from PIL import Image
from rich.console import Console
from tqdm.auto import tqdm

from common import ROOT, commit, keep_line, kept_lines, provenance
from diffusers_erasepro import ErasureAdapter, ErasureSpec, erase, pictures
from diffusers_erasepro.baselines import rece, speed, uce
from diffusers_erasepro.cli import demo_pictures
from diffusers_erasepro.errors import ErasureError
from diffusers_erasepro.evaluation.metrics import feature_change, pixel_change
from diffusers_erasepro.evaluation.results import UNEDITED
from diffusers_erasepro.loaders.prompt_measures import measure_prompts
from diffusers_erasepro.pictures.captions import BACKGROUNDS, STYLES
from diffusers_erasepro.pictures.judge import half, pixels
from harness import Make, file_name
from pictures_cells import (
    ANCHOR,
    CELLS,
    HUNDRED,
    LINEAR,
    OURS,
    PEERS,
    SHARES,
    PicturesCell,
    Prompt,
    captions_to_keep,
    find_cells,
    prompts_of,
)
from pictures_drawing import SHOWN, STEPS, TRIED, Studio, shown_folder, weights_of

ROWS: dict[str, Make] = {
    OURS: partial(erase, layers=("embedding", "gates")),
    LINEAR: partial(erase, layers=(0, -1)),
    "ours: default": erase,
    "UCE": uce,
    "SPEED": speed,
    "RECE": rece,
    "embedding rows alone": partial(erase, layers=("embedding",)),
    "gates alone": partial(erase, layers=("gates",)),
}
"""Row -> how its adapter is made."""
MEASURED = 8
"""Prompts of the target that are measured in the states too, as many near it, twice as many
others: the first, however many pictures there are."""
NUMBERS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 200)
"""What `--minutes` chooses n from, so that a busy minute does not change it."""
SECONDS = {"ours": 40.0, "peer": 10.0, "states": 3.0}
"""Of a core, roughly: to solve one of ours, to solve a peer, to measure a row's states."""
SHIPPED_STEPS = 20
"""At which the world's own README measures."""
README_PICTURE = "pictures-before-after.png"
Line = dict[str, Any]
MADE = "made.txt"
"""Beside an edit: the commit that made it."""


# ------------------------------------------------------------------------------------- edits


class Edits:
    """The adapters of all cells and rows, kept in a folder: each is made once."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        self.pipe = studio.pipe
        self.folder = folder
        self._encoder = weights_of(self.pipe, ["text_encoder"])
        self._denoiser = studio.weights
        self._paths: dict[tuple[str, str], Path] = {}

    def find(self, cell_name: str, cell: PicturesCell, row: str) -> Path:
        """Where the adapter lies, or will lie; its name holds all that it depends on."""
        if (cell_name, row) not in self._paths:
            content = [row, self._encoder, self._spec(cell).to_toml()]
            content += [self._denoiser] if row in PEERS else []
            key = hashlib.sha1("\n".join(content).encode()).hexdigest()[:12]
            name = f"{file_name(cell_name)}-{file_name(row)}-{key}"
            self._paths[cell_name, row] = self.folder / "edits" / name
        return self._paths[cell_name, row]

    def make(self, cell_name: str, cell: PicturesCell, row: str) -> ErasureAdapter:
        """The adapter, from the folder where it was made before.

        Raises:
            ErasureError: The method refuses.
        """
        path = self.find(cell_name, cell, row)
        if not path.exists():
            adapter = ROWS[row](self.pipe, self._spec(cell))
            adapter.save_pretrained(path)
            (path / MADE).write_text(commit(), encoding="utf-8")
        return ErasureAdapter.from_pretrained(path)

    def _spec(self, cell: PicturesCell) -> ErasureSpec:
        return ErasureSpec(cell.concepts, preserve=captions_to_keep(cell))


def measure_states(
    studio: Studio, adapter: ErasureAdapter, prompts: Mapping[str, Sequence[Prompt]]
) -> dict[str, Any]:
    """What `eval` and `verify` say of the first prompts of each kind, without a picture.

    Returns:
        Kind -> for the target "left" and "left KIND OF POSITION", for others "moved"; a number, or
        None, per prompt.
    """
    some = {kind: prompts.get(kind, []) for kind in ("target", "near", "other")}
    texts: list[str] = []
    for part in some.values():
        texts += [prompt.text for prompt in part]
    with studio.edited(adapter):
        known = {one.text: one for one in measure_prompts(studio.pipe, texts)}
    found: dict[str, Any] = {}
    for kind in ("near", "other"):
        found[kind] = [rounded(known[prompt.text].moved) for prompt in some[kind]]
    targets = [known[prompt.text] for prompt in some["target"]]
    found["target"] = {"left": [rounded(one.left) for one in targets]}
    for place in ("name", "other", "ends"):
        by_kind = [rounded(one.left_by_kind.get(place)) for one in targets]
        found["target"][f"left {place}"] = by_kind
    if studio.denoiser not in adapter.components:
        said = [prompt.text for prompt in some["target"]]
        meant = [prompt.text for prompt in prompts[ANCHOR]]
        left = left_in_padding(studio, adapter, said, meant)
        found["target"]["left padding"] = list(map(rounded, left))
    return found


def left_in_padding(
    studio: Studio, adapter: ErasureAdapter, texts: Sequence[str], anchors: Sequence[str]
) -> list[float]:
    """What is left behind the end of each prompt, where both it and the anchor's are padded.

    The U-Net attends to these states, and `measure_prompts` counts those alone that the text
    encoder's mask leaves.
    """
    before = studio.states(texts)
    goal = studio.states(anchors)
    with studio.edited(adapter):
        now = studio.states(texts)
    lengths = [studio.pipe.tokenizer(list(some)).attention_mask for some in (texts, anchors)]
    left = []
    for i in range(len(texts)):
        first = max(sum(of_text[i]) for of_text in lengths)
        rest = (now[i, first:] - goal[i, first:]).norm(dim=-1).sum()
        gap = (before[i, first:] - goal[i, first:]).norm(dim=-1).sum()
        left.append(float(rest / gap) if gap > 0 else 0.0)
    return left


def rounded(value: float | None) -> float | None:
    """To four digits, as the lines keep it."""
    return None if value is None else float(f"{value:.4g}")


# ------------------------------------------------------------------------------------- judging


class Judging:
    """The world's judge, and what a line keeps of its answers."""

    def __init__(self) -> None:
        self.judge = pictures.load_judge()
        self.things = {thing: i for i, thing in enumerate(self.judge.things)}

    def describe(
        self, prompts: Sequence[Prompt], images: Sequence[Image.Image], kind: str
    ) -> dict[str, list[int]]:
        """Likeliest thing, hand and background of each picture, as places in their lists.

        Of pairs, "left" and "right" are the things of the two halves.
        """
        if kind == "pair":
            found = {}
            for side, name in enumerate(("left", "right")):
                said = self.judge.likeliest([half(image, side) for image in images])
                found[name] = [self.things[thing] for thing in said["thing"]]
            return found
        said = self.judge.likeliest(images)
        return {
            "thing": [self.things[thing] for thing in said["thing"]],
            "hand": [STYLES.index(hand) for hand in said["hand"]],
            "background": [BACKGROUNDS.index(color) for color in said["background"]],
        }

    def changes(
        self, before: Sequence[Image.Image], after: Sequence[Image.Image]
    ) -> dict[str, list[float | None]]:
        """Mean squared change of each picture, and that of the judge's features."""
        moved = pixel_change(before, after)
        features = [self.judge.net.features(pixels(some)).detach() for some in (before, after)]
        far = feature_change(*features)
        return {"mse": list(map(rounded, moved)), "feature": list(map(rounded, far))}


# ------------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class Request:
    """What was asked for: it decides which lines count."""

    n: int
    others: int
    seed: int
    steps: int

    def of(self, cell: PicturesCell) -> dict[str, list[Prompt]]:
        """The cell's prompts by kind."""
        return prompts_of(cell, self.n, self.others, self.seed)


class Bench:
    """One pipeline: its edits, its pictures, its lines."""

    def __init__(self, kind: str, request: Request, args: argparse.Namespace) -> None:
        self.kind = kind
        self.request = request
        self.lines = args.lines
        self.folder = args.folder
        self.studio = Studio(kind, args.folder / "drawn", steps=request.steps)
        self.edits = Edits(self.studio, args.folder)
        self.judging = Judging()
        self.where = provenance(request.seed)
        self._before: dict[str, dict[str, list[Image.Image]]] = {}

    def missing(self, cells: Mapping[str, PicturesCell], rows: Sequence[str]) -> Iterator[Line]:
        """The lines that are not there yet, without what is measured."""
        done = [identity(line) for line in kept_lines(self.lines)]
        for name, cell in cells.items():
            for row in rows_of(cell, rows):
                head = self._head(name, cell, row)
                if identity(head) not in done:
                    yield head

    def _head(self, name: str, cell: PicturesCell, row: str) -> Line:
        edit = "" if row == UNEDITED else self.edits.find(name, cell, row).name
        head = {"pipeline": self.kind, "cell": name, "row": row, **vars(self.request)}
        return head | {"weights": self.studio.weights, "edit": edit}

    def check_steps(self, count: int) -> None:
        """Are few steps enough? The same captions and noise at 20 steps of what is shipped."""
        studio = self.studio
        asked = pictures.captions(count, self.request.seed, held_out=True)
        few = {"steps": studio.steps, "scheduler": studio.pipe.scheduler}
        many = {"steps": SHIPPED_STEPS, "scheduler": studio.shipped_scheduler}
        shares = []
        said = []
        for how in (few, many):
            images = studio.draw_with(asked, **how)
            answers = self.judging.judge.likeliest(images)["thing"]
            right = [a == caption.things[0] for a, caption in zip(answers, asked, strict=True)]
            shares.append(sum(right) / count)
            said.append(answers)
        same = sum(a == b for a, b in zip(*said, strict=True)) / count
        check = {"captions": count, "few": shares[0], "many": shares[1], "same": same}
        print(f"thing right at {studio.steps} and {SHIPPED_STEPS} steps: {check}")
        head = {"pipeline": self.kind, "weights": studio.weights, "steps": studio.steps}
        keep_line(self.lines, {**head, "check": check, "where": self.where})

    def solve(self, cells: Mapping[str, PicturesCell], rows: Sequence[str]) -> None:
        """Make the edits that are asked for, and measure the states that each leaves."""
        todo = [(name, row) for name, cell in cells.items() for row in rows_of(cell, rows)]
        for name, row in tqdm([one for one in todo if one[1] != UNEDITED], desc="solve"):
            try:
                adapter = self.edits.make(name, cells[name], row)
                self._states(name, cells[name], row, adapter)
            except ErasureError as error:
                tqdm.write(f"{name} / {row}: refused: {error}")

    def run(self, cells: Mapping[str, PicturesCell], rows: Sequence[str]) -> None:
        """Draw, judge and keep every line that is missing."""
        todo = list(self.missing(cells, rows))
        for head in tqdm(todo, desc=f"{self.kind}: cells x rows"):
            cell = cells[head["cell"]]
            try:
                line = self._measure(head["cell"], cell, head["row"])
            except ErasureError as error:
                line = {"refused": f"{type(error).__name__}: {error}"}
            keep_line(self.lines, {**head, **line, "where": self.where})

    def _measure(self, name: str, cell: PicturesCell, row: str) -> Line:
        prompts = self.request.of(cell)
        if name not in self._before:  # of one cell at a time
            self._before = {name: self._draw(prompts, None, f"{name}: {UNEDITED}")}
        before = self._before[name]
        if row == UNEDITED:
            self._show(name, row, before)
            kinds = {kind: self._describe(kind, prompts[kind], before[kind]) for kind in prompts}
            return {"kinds": kinds}
        adapter = self.edits.make(name, cell, row)
        states = self._states(name, cell, row, adapter)
        del prompts[ANCHOR]
        after = self._draw(prompts, adapter, f"{name}: {row}")
        self._show(name, row, after)
        kinds = {}
        for kind, some in prompts.items():
            kinds[kind] = self._describe(kind, some, after[kind])
            kinds[kind] |= self.judging.changes(before[kind], after[kind])
        made = self.edits.find(name, cell, row) / MADE
        return {"kinds": kinds, "states": states, "made": made.read_text(encoding="utf-8")}

    def _draw(
        self, prompts: Mapping[str, Sequence[Prompt]], adapter: ErasureAdapter | None, what: str
    ) -> dict[str, list[Image.Image]]:
        """Kind -> pictures; all kinds together fill the batches."""
        every = [prompt for some in prompts.values() for prompt in some]
        with self.studio.edited(adapter) as denoiser:
            drawn = iter(
                self.studio.draw(
                    every, self.request.seed, denoiser, what=what, keep=adapter is None
                )
            )
        return {kind: [next(drawn) for _ in some] for kind, some in prompts.items()}

    def _show(self, name: str, row: str, drawn: Mapping[str, Sequence[Image.Image]]) -> None:
        """Keep the first pictures of each kind for the page."""
        folder = shown_folder(self.folder, self.studio.weights, name, row)
        folder.mkdir(parents=True, exist_ok=True)
        for kind, images in drawn.items():
            for i, image in enumerate(images[:SHOWN]):
                image.save(folder / f"{kind}-{i}.png")

    def _describe(self, kind: str, prompts: Sequence[Prompt], images: Sequence[Any]) -> Line:
        return self.judging.describe(prompts, images, kind)

    def _states(self, name: str, cell: PicturesCell, row: str, adapter: ErasureAdapter) -> Line:
        """What `measure_states` says, kept in a file beside the edit."""
        seed = self.request.seed
        path = self.edits.find(name, cell, row) / f"states-{MEASURED}-{seed}.json"
        if not path.exists():
            prompts = prompts_of(cell, MEASURED, 2 * MEASURED, seed)
            found = measure_states(self.studio, adapter, prompts)
            path.write_text(json.dumps(found), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))


def identity(line: Mapping[str, Any]) -> str:
    """What a line was measured for; a line counts for the same alone."""
    names = ("pipeline", "cell", "row", "n", "others", "seed", "steps", "weights", "edit")
    return json.dumps([line.get(name) for name in names])


def rows_of(cell: PicturesCell, rows: Sequence[str]) -> list[str]:
    """The rows of a cell, of those that are asked for; unedited first."""
    return [UNEDITED, *(row for row in rows if not cell.rows or row in cell.rows)]


# ------------------------------------------------------------------------------------- the plan


def seconds_of(bench: Bench, heads: Sequence[Line], request: Request, each: float) -> float:
    """Seconds of a core that the missing lines take, at most: pictures are shared by rows."""
    total = 0.0
    for head in heads:
        cell = find_cells([head["cell"]])[head["cell"]]
        prompts = request.of(cell)
        if head["row"] != UNEDITED:
            path = bench.edits.find(head["cell"], cell, head["row"])
            made = SECONDS["peer" if head["row"] in PEERS else "ours"]
            total += SECONDS["states"] + (0.0 if path.exists() else made)
            del prompts[ANCHOR]
        total += each * sum(map(len, prompts.values()))
    return total


def print_plan(bench: Bench, cells: Mapping[str, PicturesCell], rows: Sequence[str]) -> None:
    """What will be drawn, and how long it takes at most."""
    heads = list(bench.missing(cells, rows))
    each = bench.studio.seconds_of_a_picture()
    minutes = seconds_of(bench, heads, bench.request, each) / 60
    names = dict.fromkeys(head["cell"] for head in heads)
    unsolved = 0
    for head in heads:
        if head["row"] != UNEDITED:
            path = bench.edits.find(head["cell"], cells[head["cell"]], head["row"])
            unsolved += not path.exists()
    asked = bench.request
    print(
        f"{bench.kind}, weights {bench.studio.weights[:12]}: {len(heads)} lines to measure in "
        f"{len(names)} cells, {unsolved} edits to solve first; n {asked.n}, {asked.others} others, "
        f"{asked.steps} steps, {each:.2f} s a picture (of {TRIED}); at most {minutes:.0f} minutes "
        "of one core",
        flush=True,
    )


def choose_n(bench: Bench, cells: Any, rows: Sequence[str], args: argparse.Namespace) -> Request:
    """The largest number of pictures that fits the minutes; where a run was stopped, its own."""
    for line in reversed(kept_lines(args.lines)):
        same = ("weights", bench.studio.weights), ("seed", args.seed), ("steps", args.steps)
        if "n" in line and all(line[name] == value for name, value in same):
            return Request(line["n"], line["others"], args.seed, args.steps)
    each = bench.studio.seconds_of_a_picture()
    heads = list(bench.missing(cells, rows))
    best = Request(NUMBERS[0], 2 * NUMBERS[0], args.seed, args.steps)
    for n in NUMBERS:
        request = Request(n, 2 * n, args.seed, args.steps)
        if seconds_of(bench, heads, request, each) <= 60 * args.minutes:
            best = request
    return best


# ------------------------------------------------------------------------------------- commands


def parse() -> argparse.Namespace:
    """What the command takes."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="*", default=["unet"], choices=("unet", "dit"))
    parser.add_argument("--cells", nargs="*", choices=(*CELLS, HUNDRED), help="default: all but it")
    parser.add_argument("--rows", nargs="*", choices=ROWS, help="default: all")
    parser.add_argument("--n", type=int, default=12, help=f"prompts of a kind; shares: {SHARES}")
    parser.add_argument("--others", type=int, help="prompts of anything else; default: 2 n")
    parser.add_argument("--minutes", type=float, help="of one core; chooses n instead")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "pictures-erasing")
    parser.add_argument("--lines", type=Path, default=here / "results" / "pictures.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "pictures.md")
    parser.add_argument(
        "--check-steps", type=int, metavar="N", help="N captions at few steps and at 20, and stop"
    )
    parser.add_argument("--plan", action="store_true", help="print the plan alone")
    parser.add_argument("--solve", action="store_true", help="the edits alone, no picture")
    parser.add_argument("--draw", action="store_true", help="the page alone, from the lines")
    parser.add_argument("--thresholds", action="store_true", help="what the scatter suggests")
    parser.add_argument("--readme-picture", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parse()
    # long phrases of the product are cut at the 32 tokens that this world reads
    warnings.filterwarnings("ignore", message=".*this world reads the first")
    logging.set_verbosity_error()
    cells = find_cells(args.cells)
    rows = args.rows or list(ROWS)
    request = Request(args.n, args.others or 2 * args.n, args.seed, args.steps)
    drawing = not (args.draw or args.thresholds or args.readme_picture)
    for kind in args.kinds if drawing else ():
        bench = Bench(kind, request, args)
        if args.check_steps:
            bench.check_steps(args.check_steps)
            continue
        if args.minutes:
            bench.request = choose_n(bench, cells, rows, args)
        print_plan(bench, cells, rows)
        if args.solve:
            bench.solve(cells, [row for row in rows if args.rows or row not in PEERS])
        elif not args.plan:
            bench.run(cells, rows)
    finish(args, drawing)


def finish(args: argparse.Namespace, drawing: bool) -> None:
    """The page, what the scatter suggests, or the README's picture."""
    if args.readme_picture:
        with TemporaryDirectory() as folder:
            found = demo_pictures.run_pictures(Path(folder), Console())
            path = shutil.copy(found["picture"], ROOT / "docs" / "images" / README_PICTURE)
            print(f"drawn: {path}")
        return
    if drawing and (args.plan or args.solve or args.check_steps):
        return
    from pictures_page import save_page
    from pictures_scatter import print_thresholds

    if args.thresholds:
        print_thresholds(args.lines)
    else:
        save_page(args.lines, args.page, args.folder)


if __name__ == "__main__":
    main()
