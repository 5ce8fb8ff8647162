"""Each choice of the method changed alone, from the default.

Images are of training phrasings, as defaults are chosen by them; only `held_out_mean` measures
phrasings that no edit was solved for. The choices after the chains each differ from blocks 0 and
last, which every concept can take. r and d are noise predictions; sizes go from shallow to deep.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from diffusers_erasepro import ErasureAdapter, ErasureSpec, erase, glyphs
from diffusers_erasepro.adapters.report import NAN
from diffusers_erasepro.baselines import literal
from diffusers_erasepro.config.options import OtherMethod
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.erasure.covariance import record_inputs
from diffusers_erasepro.prompts.alignment import rows_to_solve
from diffusers_erasepro.prompts.tokens import text_paths, token_ids
from harness import Cell, Experiment, Make, main, parse_arguments
from worlds import glyph_world, plain_cases

RIDGE = 0.01
"""Share of the identity in the covariance of CLEAR's criterion."""
COLUMNS = (
    "ACC_e",
    "ACC_s",
    "mse",
    "median",
    "listed_residual",
    "held_out_mean",
    "drift",
    "r",
    "d",
    "sizes",
    "rank",
)


@torch.no_grad()
def clearest_block(pipe: Any, spec: ErasureSpec) -> int:
    """The block whose last linear tells the target best from the preserve captions.

    The Mahalanobis distance of what it receives at the constrained positions, sqrt(x' C^-1 x), on
    average (CLEAR, arXiv 2605.25941, our reading).
    """
    (path,) = text_paths(pipe)
    rows = rows_to_solve(spec.concepts, path, ALIGNMENTS["last_subject+eos"], soft_budget=0)
    exact = rows["exact"]
    captions = token_ids(pipe.tokenizer, spec.preserve_captions())
    blocks = pipe.text_encoder.get_submodule("encoder.layers")
    linears = {str(i): block.mlp.fc2 for i, block in enumerate(blocks[:-1])}
    with record_inputs(linears) as kept:
        pipe.text_encoder(captions)
    with record_inputs(linears) as asked:
        pipe.text_encoder(exact.target.ids)
    distances = []
    for name in linears:
        x = kept[name].flatten(0, 1).double()
        C = x.T @ x / len(x)
        C += RIDGE * C.diagonal().mean() * torch.eye(len(C))
        targets = asked[name][exact.row, exact.target_at].double()
        L = torch.linalg.cholesky(C)
        far = torch.linalg.solve_triangular(L, targets.T, upper=False)
        distances.append(float(far.norm(dim=0).mean()))
    return distances.index(max(distances))


def erase_by_clear(pipe: Any, spec: ErasureSpec) -> ErasureAdapter:
    """The early block that CLEAR's criterion chooses, and the last."""
    return erase(pipe, spec, layers=(clearest_block(pipe, spec), -1))


def erase_apart(pipe: Any, spec: ErasureSpec) -> ErasureAdapter:
    """Blocks 0 and last without their order: each solved as if the other stayed unedited."""
    whole = BLOCKS(pipe, spec)
    parts = [erase(pipe, spec, layers=(block,)) for block in (0, -1)]
    edits = parts[0].edits | parts[1].edits
    layers = parts[0].report.layers + parts[1].report.layers
    report = replace(whole.report, layers=layers, listed_residual=NAN, held_out_mean=NAN, drift=NAN)
    # a record of another method, as a load checks that what `erase` made meets its listed prompts
    return replace(whole, edits=edits, report=report, options=OtherMethod("blocks apart"))


def with_captions(pipe: Any, spec: ErasureSpec, *, count: int) -> ErasureAdapter:
    """The default with a preserve list of that length."""
    return erase(pipe, replace(spec, preserve=tuple(glyphs.captions(count, seed=0))))


BLOCKS = partial(erase, layers=(0, -1))
METHODS: dict[str, Make] = {
    "ours: default": erase,
    "blocks 0 and last": BLOCKS,
    "word neurons and last": partial(erase, layers=("neurons", -1)),
    "EOS neurons and last": partial(erase, layers=("eos_neurons", -1)),
    "both neurons and last": partial(erase, layers=("neurons", "eos_neurons", -1)),
    "closing block alone": partial(erase, layers=(-1,)),
    "first block alone": partial(erase, layers=(0,)),
    "blocks 1 and last": partial(erase, layers=(1, -1)),
    "blocks 2 and last": partial(erase, layers=(2, -1)),
    "blocks 3 and last": partial(erase, layers=(3, -1)),
    "block 0, then K/V": partial(erase, layers=(0, "kv")),
    "K/V alone": partial(erase, layers=("kv",)),
    "auto": partial(erase, layers="auto"),
    "the block CLEAR chooses, and last": erase_by_clear,
    "0 and last, each as if alone": erase_apart,
    "every linear (the paper's formula)": literal,
    "identity metric": partial(BLOCKS, metric="identity"),
    "last subject token": partial(BLOCKS, alignment="last_subject"),
    "whole subject, EOS": partial(BLOCKS, alignment="subject+eos"),
    "subject to EOS": partial(BLOCKS, alignment="subject_to_eos"),
    "no soft prompts": partial(BLOCKS, soft_budget=0),
    "8 soft prompts": partial(BLOCKS, soft_budget=8),
    "soft weight .001": partial(BLOCKS, soft_weight=0.001),
    "soft weight .01": partial(BLOCKS, soft_weight=0.01),
    "soft weight .1": partial(BLOCKS, soft_weight=0.1),
    "ridge .001": partial(BLOCKS, ridge=0.001),
    "ridge .1": partial(BLOCKS, ridge=0.1),
    "rank at most 16": partial(BLOCKS, max_rank=16),
    "100 preserve captions": partial(with_captions, count=100),
    "1600 preserve captions": partial(with_captions, count=1600),
}
"""Choice -> how its adapter is made."""

if __name__ == "__main__":
    args = parse_arguments(32, 3, __doc__)
    world = glyph_world(args.world, args.folder)
    suite = world.suite(partial(plain_cases, world=world.words, held_out=False), "training")
    concepts = tuple(world.concepts.values())
    cells = {c.target: Cell((c,), suite) for c in (concepts[0], concepts[4], concepts[6])}
    ablation = Experiment(
        "ablation", world, cells, METHODS, args.n, args.seed, __doc__, COLUMNS, predictions=True
    )
    main(ablation, args)
