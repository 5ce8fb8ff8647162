"""What a request was resolved to, per concept: where it is edited, and which positions are held."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .spec import Concept

Layers = tuple[int | str, ...]
READERS = "kv"
"""The name that stands for the denoiser's K/V linears among `layers`."""
EMBEDDING = "embedding"
"""The name that stands for rows of the token embedding."""
GATES = "gates"
"""The name that stands for thresholded pairs of idle neurons, in the shallowest block that tells a
name from everything else. "gates:2" is block 2 and no other."""
OTHERWISE = "otherwise"
"""What the name of a layer begins with that edits only words which rows and gates do not reach on
an encoder, or only in part: "otherwise:0" is block 0 for those, "otherwise:-1" the last."""
NEURONS = ("neurons", "eos_neurons")
"""The names that stand for idle neurons of the first block, and of the last that is read."""


LAYERS_IN_WORDS = {
    EMBEDDING: "rows of the token embedding",
    READERS: "the denoiser's keys and values",
    NEURONS[0]: "idle neurons of the first block",
    NEURONS[1]: "idle neurons of the last block",
}
"""How sentences call the layers that have a name."""
BLOCKS_IN_WORDS = {0: "the first block", -1: "the last block"}


@dataclass(frozen=True)
class Alignment:
    """Which target positions are sent to which anchor positions."""

    whole_subject: bool = False
    """Every subject token, or the last one only."""
    suffix: bool = False
    """The words that follow the subject."""
    eos: bool = True
    """What follows the prompt: EOS, or the end of a chat template."""
    padding: bool = False


ALIGNMENTS = {
    "last_subject": Alignment(eos=False),
    "last_subject+eos": Alignment(),
    "subject": Alignment(whole_subject=True, eos=False),
    "subject+eos": Alignment(whole_subject=True),
    "subject_to_eos": Alignment(whole_subject=True, suffix=True),
    "all": Alignment(whole_subject=True, suffix=True, padding=True),
}


def describe_alignment(name: str) -> str:
    """The positions in words, such as "the last token of the name and the end of the prompt"."""
    alignment = ALIGNMENTS.get(name)
    if alignment is None:  # of a later version
        return name
    if alignment.suffix:
        padding = ", padding too" if alignment.padding else ""
        return f"every token from the name on{padding}"
    whole = alignment.whole_subject
    subject = "every token of the name" if whole else "the last token of the name"
    return f"{subject} and the end of the prompt" if alignment.eos else subject


def describe_layer(layer: int | str) -> str:
    """A layer in words, such as "the last block" or "rows of the token embedding"."""
    if isinstance(layer, int):
        return BLOCKS_IN_WORDS.get(layer, f"block {layer}")
    start, colon, number = layer.partition(":")
    block = number
    if number.removeprefix("-").isdecimal():
        block = BLOCKS_IN_WORDS.get(int(number), f"block {number}")
    if start == OTHERWISE and colon:
        return f"{block} for names that rows and gates do not reach"
    if start == GATES and colon:
        return f"gates in {block}"
    return LAYERS_IN_WORDS.get(layer, layer)


def is_gates(layer: int | str) -> bool:
    """Whether a layer stands for gates, in a block of one's own choice or not."""
    return isinstance(layer, str) and (layer == GATES or layer.startswith(f"{GATES}:"))


def block_of_gates(layer: str) -> int | None:
    """The block that is named; None leaves it to the margins.

    Raises:
        ValueError: No number stands behind the colon.
    """
    return None if layer == GATES else int(layer.removeprefix(f"{GATES}:"))


def block_otherwise(layer: int | str) -> int | None:
    """The block for words that rows and gates do not reach; None if a layer names none."""
    if not isinstance(layer, str) or not layer.startswith(f"{OTHERWISE}:"):
        return None
    return int(layer.removeprefix(f"{OTHERWISE}:"))


def is_partial(layer: int | str) -> bool:
    """Whether a layer closes no gap to the end: rows, gates, and what stands in for either."""
    return is_selective(layer) or block_otherwise(layer) is not None


def is_selective(layer: int | str) -> bool:
    """Whether a layer answers to a name alone: rows or gates."""
    return layer == EMBEDDING or is_gates(layer)


@dataclass(frozen=True)
class Recipe:
    """Where a concept is edited, and which token positions are held there."""

    layers: Layers
    """As in `erase`."""
    alignment: str = "last_subject+eos"
    """One of `ALIGNMENTS`."""

    @property
    def gates(self) -> str | None:
        """The name that stands for gates among the layers, if there is one."""
        return next((str(name) for name in self.layers if is_gates(name)), None)

    @property
    def edits_tokens(self) -> bool:
        """Whether rows of the embedding or gates are asked for."""
        return any(map(is_selective, self.layers))

    @property
    def otherwise(self) -> tuple[int, ...]:
        """The blocks for words that rows and gates do not reach."""
        found = (block_otherwise(name) for name in self.layers)
        return tuple(block for block in found if block is not None)


BLOCKS = Recipe((0, -1))
"""The first block and the last: every encoder has them."""
SELECTIVE = Recipe((EMBEDDING, GATES, f"{OTHERWISE}:0", -1))
"""Rows where a name's tokens are its own, gates where they are shared, the first block where
neither is possible; the last block closes what the listed prompts have left."""


@dataclass(frozen=True)
class Plan:
    """The recipe of every concept, by its target."""

    recipes: tuple[tuple[str, Recipe], ...]

    @classmethod
    def uniform(cls, concepts: Sequence[Concept], recipe: Recipe) -> Plan:
        """The same recipe for every concept."""
        return cls(tuple((concept.target, recipe) for concept in concepts))

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, Any]]) -> Plan:
        """What `to_dict` wrote."""
        recipes = {t: Recipe(tuple(r["layers"]), r["alignment"]) for t, r in data.items()}
        return cls(tuple(recipes.items()))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain data for the file's header."""
        return {
            target: {"layers": list(recipe.layers), "alignment": recipe.alignment}
            for target, recipe in self.recipes
        }

    def recipe_of(self, concept: Concept) -> Recipe:
        """The recipe of one concept."""
        return dict(self.recipes)[concept.target]

    def alignment_of(self, concept: Concept) -> Alignment:
        """Which positions of a concept's prompts are held."""
        return ALIGNMENTS[self.recipe_of(concept).alignment]

    def alignments(self, concepts: Iterable[Concept]) -> dict[str, Alignment]:
        """By word, which positions of the prompts that name it are held."""
        found: dict[str, Alignment] = {}
        for concept in concepts:
            found |= dict.fromkeys(concept.words, self.alignment_of(concept))
        return found

    def concepts_by_gates(self, concepts: Iterable[Concept]) -> dict[str, list[Concept]]:
        """By the name that stands for gates, the concepts that ask for them there."""
        found: dict[str, list[Concept]] = {}
        for concept in concepts:
            name = self.recipe_of(concept).gates
            if name is not None:
                found.setdefault(name, []).append(concept)
        return found

    def concepts_at(self, layer: int | str, concepts: Iterable[Concept]) -> list[Concept]:
        """The concepts that name `layer` among theirs."""
        return [c for c in concepts if layer in self.recipe_of(c).layers]

    @property
    def layers(self) -> Layers:
        """The layers of all concepts."""
        found: dict[int | str, None] = {}
        for _, recipe in self.recipes:
            found |= dict.fromkeys(recipe.layers)
        return tuple(found)

    @property
    def assigns_neurons(self) -> bool:
        """Whether idle neurons are assigned to words."""
        return any(name in NEURONS or is_gates(name) for name in self.layers)

    def without_neurons(
        self, where: Plan | None = None, targets: Container[str] | None = None
    ) -> Plan:
        """The same plan with `BLOCKS` wherever neurons are asked for; rows and positions stay.

        Args:
            where: Only concepts that have another recipe in this plan; None is all.
            targets: Only these; None is all.
        """
        kept = []
        asked = {} if where is None else dict(where.recipes)
        for target, recipe in self.recipes:
            named = any(name in NEURONS or is_gates(name) for name in recipe.layers)
            named = named and asked.get(target) != recipe
            named = named and (targets is None or target in targets)
            rows = tuple(name for name in recipe.layers if name == EMBEDDING)
            layers = (*rows, *BLOCKS.layers) if named else recipe.layers
            kept.append((target, Recipe(layers, recipe.alignment)))
        return Plan(tuple(kept))
