"""Encoder blocks: an edit of the linear that writes last sends the block's output to the anchor's.

That the stream itself must meet the anchor's, and not each linear's own output, is our reading of
ErasePro (arXiv 2508.04472).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...config.options import blocks_in
from ...config.plan import Recipe
from ...errors import ConceptSpecError, UnknownFamilyError
from ...families.encoders import blocks_path, blocks_read, encoder_family_of
from ...linalg.constrained import Labels, Limits, Soft, Solution, solve
from ...prompts.alignment import Rows
from .planning import Planning, list_names
from .protocol import INPUT, ByKind, Edits

Solver = Callable[[ByKind, ByKind], Solution]
"""Keys and gaps per kind of prompts, `(k, d)` each, to the solution."""
ROWS_ALONE = (
    "embedding: with its rows {where} reads every listed prompt as its anchor's, token by token; "
    "no block is edited there"
)


@dataclass(frozen=True)
class LinearSite:
    """One linear D of which is solved so that the gap of `output` closes."""

    component: str
    linear: str
    output: str
    positions: Mapping[str, Rows]
    solver: Solver

    @property
    def inputs(self) -> tuple[str, ...]:
        """The linear itself."""
        return (self.linear,)

    def solve(self, inputs: Mapping[str, ByKind], gap: ByKind) -> Edits:
        """The smallest edit of the linear that adds the gap at the exact positions."""
        keys = inputs[self.linear]
        solution = self.solver(keys, gap)
        return Edits({self.linear: solution.factors}, {self.linear: keys["exact"].T}, solution)

    def apply(
        self, output: Tensor, inputs: Mapping[str, Tensor], edits: Edits
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The edit is added at every position, as the edited weight would add it."""
        factors = edits.factors[self.linear]
        return output + factors(inputs[self.linear]), {}


def block_sites(planning: Planning) -> list[LinearSite]:
    """The blocks that the plan names, shallow to deep; none for words that rows alone meet.

    Raises:
        ConceptSpecError: As from `writer_of`.
    """
    sites = []
    spared = False
    for block in planned_blocks(planning):
        open_words = words_at(planning, block) - planning.met
        if not open_words:
            spared = True
            continue
        path = f"{blocks_path(planning.live)}.{block}"
        writer = writer_of(planning.live, path, names=sorted(open_words))
        output = stream_of(planning.live, path)
        sites.append(site_at(planning, block, linear=f"{path}.{writer}", output=output))
    if spared and not sites:
        planning.notes.append(ROWS_ALONE.format(where=planning.path.use.encoder))
    return sites


def site_at(planning: Planning, block: int, *, linear: str, output: str) -> LinearSite:
    """The site of one linear of a block, for the words that are edited there."""
    positions = planning.positions_naming(words_at(planning, block))
    return LinearSite(
        planning.path.use.encoder,
        linear,
        output,
        positions,
        covariance_solver(planning, linear, positions),
    )


def covariance_solver(planning: Planning, name: str, positions: Mapping[str, Rows]) -> Solver:
    """`solve` with the options' numbers, in the metric of what `name` usually receives."""
    options = planning.options
    columns = [planning.pairs["exact"][i] for i in positions["exact"].row]
    named = {pair.word for pair in columns}
    for i in positions["soft"].row.tolist():
        named.add(planning.pairs["soft"][i].word)
    # a concept weighs the same in any company, also where its synonyms alone are edited
    weight = options.soft_weight * planning.count_concepts(named)
    limits = Limits(rtol=options.rtol, max_rank=options.max_rank)
    labels = Labels(name, tuple(pair.target.text for pair in columns))

    def solver(keys: ByKind, gap: ByKind) -> Solution:
        return solve(
            keys["exact"].T,
            gap["exact"].T,
            L=planning.metrics.get(name),
            K=planning.kept.get(name),
            soft=Soft(keys["soft"].T, gap["soft"].T, weight),
            limits=limits,
            labels=labels,
        )

    return solver


def planned_blocks(planning: Planning) -> list[int]:
    """All blocks that some word is edited in, shallow to deep."""
    count = blocks_read(planning.live, planning.path.use.readings)[-1] + 1
    return [block for block in range(count) if words_at(planning, block)]


def words_at(planning: Planning, block: int) -> set[str]:
    """The words that are edited in a block: a concept's, or those that nothing else reaches.

    Raises:
        ConceptSpecError: The encoder has no block that a recipe names.
    """
    recipes = dict(planning.plan.recipes)
    asked: dict[Recipe, bool] = {}
    standing_in: dict[Recipe, bool] = {}
    for recipe in {*recipes.values()}:
        asked[recipe] = block in blocks_of_recipe(planning, recipe)
        standing_in[recipe] = block in blocks_of_recipe(planning, Recipe(recipe.otherwise))
    found: set[str] = set()
    for concept in planning.spec.concepts:
        recipe = recipes[concept.target]
        if asked[recipe]:
            found |= {*concept.words}
        elif standing_in[recipe]:
            found |= planning.unreached.intersection(concept.words)
    return found


def blocks_of_recipe(planning: Planning, recipe: Recipe) -> list[int]:
    """The blocks to edit, counted from the last that is read.

    A recipe that names the last edits every block that is read.
    """
    closing = blocks_read(planning.live, planning.path.use.readings)
    blocks = blocks_in(recipe.layers, closing[-1] + 1)
    return sorted({*blocks, *closing}) if closing[-1] in blocks else blocks


def stream_of(encoder: nn.Module, block: str) -> str:
    """What an edit of a block's last linear adds to: the block's output, or its last norm's input.

    `block` is the block's name.
    """
    norm = encoder_family_of(encoder).stream
    return block if norm is None else f"{block}.{norm}{INPUT}"


def writer_of(encoder: nn.Module, block: str, *, names: Sequence[str] = ()) -> str:
    """The linear of a block that writes the residual stream last.

    Args:
        encoder: Of a pipeline.
        block: The block's name.
        names: For which it shall be edited; messages list them.

    Raises:
        ConceptSpecError: A norm follows every linear.
        UnknownFamilyError: The record names a linear that is not there.
    """
    family = encoder_family_of(encoder)
    writer = family.writer
    lacking = f" (rows alone do not meet the anchor of {list_names(names)})" if names else ""
    if family.rows_only:
        raise ConceptSpecError(
            f"layers: {type(encoder).__name__} reads tokens beside the states of another encoder, "
            f"so that no edit of its blocks is solved{lacking}; use layers='embedding', rows of "
            "tokens that only the name uses"
        )
    if writer is None:
        raise ConceptSpecError(
            f"layers: in {type(encoder).__name__} a norm follows every linear, so no edit of one "
            f"reaches an arbitrary state{lacking}; use layers='kv', the denoiser's linears that "
            "read it, or layers='embedding', rows of tokens that only the name uses"
        )
    if f"{block}.{writer}" not in {name for name, _ in encoder.named_modules()}:
        raise UnknownFamilyError(
            f"{type(encoder).__name__} has no {writer} in its blocks; see docs/families.md"
        )
    return writer
