"""Combine adapters into one edit: their specs are solved again together, on the live pipeline."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import worst
from ..config.mentions import LooseMentions, Mentions, spelling
from ..config.options import Options, OtherMethod
from ..config.plan import ALIGNMENTS, Layers
from ..config.spec import Concept, ErasureSpec
from ..erasure.erase import erase, erase_live, fall_back
from ..erasure.residuals import anchor_states
from ..erasure.sites.planning import list_names
from ..errors import AdapterStateError, EditTooLargeError, IllPosedError
from ..families.pipelines import get_component
from ..linalg.low_rank import LowRank, orthonormal, stack
from ..modules.fingerprint import fingerprint_learned
from ..patching.weights import base_fingerprint, unedited
from ..prompts.alignment import rows_of
from ..prompts.pairs import pairs_of
from ..prompts.tokens import text_paths, vocabulary_of

CACHE_SIZE = 64
"""Joint edits that are remembered."""
SUM = "sum"
SUM_WARNING = (
    "some of these erasures hold no keys, so they are added to the others instead of solved with "
    "them: residuals add up too; verify_erasure() measures them"
)
_cache: OrderedDict[tuple[str, ...], ErasureAdapter] = OrderedDict()
"""Joint edits by adapters and base weights, so that a toggle does not solve twice."""


def joint_spec(adapters: Sequence[ErasureAdapter]) -> ErasureSpec:
    """All concepts in one spec, with what each adapter keeps: captions, prompts, near phrases.

    A near phrase of one that names what another erases is left out.

    Raises:
        ConceptSpecError: Two adapters contradict each other.
    """
    concepts: list[Concept] = []
    keep: dict[str, None] = {}
    near: dict[str, None] = {}
    captions: dict[str, None] = {}
    for adapter in adapters:
        for concept in adapter.spec.concepts:
            concepts = merge_concept(concepts, concept)
        keep |= dict.fromkeys(adapter.spec.keep)
        near |= dict.fromkeys(adapter.spec.near)
        captions |= dict.fromkeys(adapter.spec.preserve or ())
    words: set[str] = set()
    spoken: list[str] = []
    for concept in concepts:
        words |= {spelling(word) for word in concept.words}
        spoken += concept.spoken
    named = LooseMentions(spoken)
    preserve = tuple(text for text in captions if spelling(text) not in words)
    specs = [adapter.spec for adapter in adapters]
    given = any(spec.preserve is not None for spec in specs)
    shipped = any(spec.everyday or (given and spec.preserve is None) for spec in specs)
    return ErasureSpec(
        tuple(concepts),
        preserve=preserve if given else None,
        keep=tuple(keep),
        near=tuple(text for text in near if text not in named),
        everyday=shipped,
    )


def merge_concept(concepts: Sequence[Concept], added: Concept) -> list[Concept]:
    """`concepts` with one more; where both name a word and send it to the same anchor, it is once.

    A target stays a target. Templates, synonyms, names and near phrases of both count.
    """
    merged: list[Concept] = []
    rest: Concept | None = added
    for concept in concepts:
        if rest is None or spelling(concept.anchor) != spelling(rest.anchor):
            merged.append(concept)
        elif spelling(concept.target) == spelling(rest.target):
            merged.append(_unite(concept, rest))
            rest = None
        else:
            merged.append(_without_words(concept, [rest.target]))
            rest = _without_words(rest, merged[-1].words)
    if rest is not None:
        merged.append(rest)
    return merged


def _unite(a: Concept, b: Concept) -> Concept:
    """One concept of two with the same target and anchor."""
    if a == b:
        return a
    exact = tuple(dict.fromkeys((*a.exact, *b.exact)))
    soft = tuple(text for text in dict.fromkeys((*a.soft, *b.soft)) if text not in exact)
    if ({*exact}, {*soft}) != ({*a.exact}, {*a.soft}):
        a = replace(a, templates=exact, soft_templates=soft)
    words = {spelling(word): word for word in reversed((*a.words, *b.words))}
    words.pop(spelling(a.target))
    names: dict[str, dict[str, None]] = {}
    for language, found in (*a.names, *b.names):
        names.setdefault(language, {}).update(dict.fromkeys(found))
    named = Mentions((a.target, *words.values()))
    near = tuple(text for text in dict.fromkeys((*a.near, *b.near)) if text not in named)
    return replace(
        a,
        synonyms=tuple(sorted(words.values())),
        names=tuple((language, tuple(found)) for language, found in names.items()),
        near=near,
    )


def _without_words(concept: Concept, words: Iterable[str]) -> Concept:
    """The concept without those of its synonyms that are among `words`."""
    taken = {spelling(word) for word in words}
    left = tuple(word for word in concept.synonyms if spelling(word) not in taken)
    return concept if left == concept.synonyms else replace(concept, synonyms=left)


def _widest(a: str, b: str) -> str:
    """The name of the first alignment that holds all positions of two."""
    asked = [asdict(ALIGNMENTS[name]) for name in (a, b)]
    for name, alignment in ALIGNMENTS.items():
        held = asdict(alignment)
        if all(held[part] for flags in asked for part, on in flags.items() if on):
            return name
    return a


def joint_options(
    adapters: Sequence[ErasureAdapter], *, without: Container[str] | None = ()
) -> dict[str, Any]:
    """The options to solve with; they must agree but for layers, positions and `robust`.

    Every concept keeps its layers and positions; the whole is robust if one is.

    Args:
        adapters: In order.
        without: Targets for which encoder blocks stand in for gates and neurons; None is all.

    Raises:
        AdapterStateError: They differ, or one is not `erase`'s.
    """
    layers: dict[str, Layers] = {}
    alignments: dict[str, str] = {}
    targets: dict[str, str] = {}
    rest: list[dict[str, Any]] = []
    robust = False
    for adapter in adapters:
        options = adapter.options
        if isinstance(options, OtherMethod):
            raise AdapterStateError(
                f"an adapter by {options.method!r} cannot be solved again; make it anew on this "
                "pipeline"
            )
        plan = adapter.plan.without_neurons(targets=without)
        for target, recipe in plan.recipes:
            # of two adapters that agree on a concept, the first says where it is edited
            known = targets.setdefault(spelling(target), target)
            layers.setdefault(known, recipe.layers)
            before = alignments.get(known, recipe.alignment)
            alignments[known] = _widest(before, recipe.alignment)
        robust |= options.robust
        own = {"layers": None, "alignment": None, "robust": None}
        rest.append(options.to_dict() | own)
    for name, value in rest[0].items():
        values = [r[name] for r in rest]
        if any(other != value for other in values):
            raise AdapterStateError(
                f"adapters made with different {name} {values} cannot be solved together; make "
                "them alike"
            )
    return rest[0] | {"layers": layers, "alignment": alignments, "robust": robust}


def solve_jointly(
    pipe: Any,
    adapters: Sequence[ErasureAdapter],
    *,
    measure: bool = False,
    on_top_of_loras: bool = False,
) -> ErasureAdapter:
    """Their specs solved together on the pipeline.

    Idle neurons for one concept may be too few for all, or their edit too large; then encoder
    blocks stand in for them, where it can be told which gates are too large for those. So they do
    beside prompts in `keep`, which neurons do not keep.
    """
    spec = joint_spec(adapters)
    solve = erase_live if on_top_of_loras else erase
    return solve_or_fall_back(
        partial(solve, pipe, spec, measure=measure), adapters, None if spec.keep else ()
    )


def solve_or_fall_back(
    solve: Callable[..., ErasureAdapter],
    adapters: Sequence[ErasureAdapter],
    without: tuple[str, ...] | None,
) -> ErasureAdapter:
    """What `solve` makes of the adapters' options, with blocks for the targets in `without`, and
    for more of them or all where that is ill-posed."""
    try:
        return solve(**joint_options(adapters, without=without))
    except IllPosedError as error:
        if without is None or not any(a.plan.assigns_neurons for a in adapters):
            raise
        words = error.words if isinstance(error, EditTooLargeError) else ()
        found: dict[str, None] = {}
        for adapter in adapters:
            found |= dict.fromkeys(adapter.spec.targets_of(words))
        more = tuple(target for target in found if target not in without)
        instead = f"the gates of {list_names(more)}" if more else "gates or neurons"
        wider = (*without, *more) if more else None
        return fall_back(error, lambda: solve_or_fall_back(solve, adapters, wider), instead)


def combine(pipe: Any, adapters: Sequence[ErasureAdapter]) -> ErasureAdapter | None:
    """One edit for all `adapters`, the same whatever their order; None for none.

    One adapter is applied as it is. Several are solved again jointly on the pipeline's base
    weights, because the sum of edits made apart leaves residuals: hundredths with the covariance
    metric, 0.4 to 0.7 with the identity. Adapters that `erase` did not make cannot be solved
    again: they are added, with a warning. A set solved before on the same base is remembered.
    """
    if len(adapters) <= 1:
        return next(iter(adapters), None)
    ordered = sorted(adapters, key=lambda a: a.digest)
    encoders = (path.use.encoder for path in text_paths(pipe))
    key = (*(a.digest for a in ordered), *encoders, *_fingerprint_bases(pipe, ordered))
    if key not in _cache:
        _cache[key] = _join(pipe, ordered)
    _cache.move_to_end(key)
    while len(_cache) > CACHE_SIZE:
        _cache.popitem(last=False)
    return _cache[key]


def _join(pipe: Any, adapters: Sequence[ErasureAdapter]) -> ErasureAdapter:
    """Ours solved together, the others added to that."""
    ours = [a for a in adapters if isinstance(a.options, Options)]
    others = [a for a in adapters if isinstance(a.options, OtherMethod)]
    _refuse_added_twice(adapters)
    if len(ours) > 1:
        ours = [solve_jointly(pipe, ours)]
    return _add_up(pipe, ours + others) if others else ours[0]


def _refuse_added_twice(adapters: Sequence[ErasureAdapter]) -> None:
    """What is added up moves a word that two of them erase twice as far: past the anchor.

    Raises:
        AdapterStateError: A word is erased by two adapters that cannot be solved together.
    """
    by_word: dict[str, ErasureAdapter] = {}
    for adapter in [a for a in adapters if not a.imported]:
        words: list[str] = []
        for concept in adapter.spec.concepts:
            words += concept.words
        for word in words:
            other = by_word.setdefault(spelling(word), adapter)
            if other is not adapter and not _solvable(other, adapter):
                raise AdapterStateError(
                    f"{word!r} is erased by two adapters, by {_method_of(other)!r} and by "
                    f"{_method_of(adapter)!r}, which can only be added up: together they go past "
                    "the anchor. Switch one off (set_erasure_adapters), or make one with erase()"
                )


def _solvable(*adapters: ErasureAdapter) -> bool:
    return all(isinstance(adapter.options, Options) for adapter in adapters)


def _method_of(adapter: ErasureAdapter) -> str:
    options = adapter.options
    return options.method if isinstance(options, OtherMethod) else "erase"


def _add_up(pipe: Any, adapters: Sequence[ErasureAdapter]) -> ErasureAdapter:
    """The sum of the edits, marked as one; `verify_erasure` measures what it leaves.

    Raises:
        AdapterStateError: They are made for different clip_skip.
    """
    clip_skip = _common_clip_skip(adapters)
    warnings.warn(SUM_WARNING, stacklevel=2)
    spec = joint_spec(adapters)
    made_by = OtherMethod(SUM, {"clip_skip": clip_skip} if clip_skip else {})
    goals: dict[str, Tensor] = {}
    with unedited(pipe), torch.no_grad():
        for path in text_paths(pipe, clip_skip):
            rows = rows_of(pairs_of(spec.concepts, "exact"), path, ALIGNMENTS[made_by.alignment])
            states = anchor_states(path.encoder, rows, path.use.readings)
            for reading, state in zip(path.use.readings, states, strict=True):
                goals[f"{path.use.encoder}.{reading}"] = state.float().cpu()
    base: dict[str, Mapping[str, str]] = {}
    for adapter in adapters:
        base |= adapter.base
    edits = {}
    for name in _edited_layers(adapters):
        edits[name] = stack([a.edits[name] for a in adapters if name in a.edits])
    return ErasureAdapter(
        spec,
        made_by,
        base=base,
        edits=edits,
        keys={},
        goals=goals,
        report=worst([a.report for a in adapters]),
    )


def _common_clip_skip(adapters: Sequence[ErasureAdapter]) -> int:
    """The clip_skip that all adapters are made for; imported ones do not say any.

    Raises:
        AdapterStateError: They differ.
    """
    found = sorted({adapter.clip_skip for adapter in adapters if not adapter.imported})
    if len(found) > 1:
        raise AdapterStateError(
            f"adapters made with different clip_skip {found} read other states, so they cannot be "
            "combined; make them alike"
        )
    return found[0] if found else 0


def _edited_layers(adapters: Sequence[ErasureAdapter]) -> list[str]:
    """Stored names of the layers that one of the adapters edits."""
    names: dict[str, None] = {}
    for adapter in adapters:
        names |= dict.fromkeys(adapter.edits)
    return list(names)


def _fingerprint_bases(pipe: Any, adapters: Sequence[ErasureAdapter]) -> list[str]:
    """Fingerprints of the components that the adapters edit."""
    parts: set[str] = set()
    for adapter in adapters:
        parts |= set(adapter.components)
    found = []
    for part in sorted(parts):
        root = get_component(pipe, part)
        rows = vocabulary_of(pipe, part)
        found.append(base_fingerprint(root, vocabulary=rows) + fingerprint_learned(root, rows))
    return found


def combine_stored(adapters: Sequence[ErasureAdapter]) -> dict[str, LowRank]:
    """One edit per layer from the files alone.

    On each adapter's stored keys it does what that adapter does.

    With S = sum B_i A_i, the keys side by side X, R = [B_1 A_1 X_1, B_2 A_2 X_2, ...] and the
    stacked A:

        G = (A X)^+ A,   D = S (I - X G) + R G

    which for exact edits is  D = B (A X)^-1 A. Where each layer's input depends on shallower edits
    the stored keys are those of the adapters apart, so this is close, not exact; `combine` is
    exact and needs the text encoder.

    Returns:
        Stored layer name -> factors in float64.

    Raises:
        AdapterStateError: They are made for different clip_skip.
        AdapterStateError: One assigns neurons: two that were made apart may have assigned the same.
    """
    if any(a.plan.assigns_neurons for a in adapters):
        raise AdapterStateError(
            "adapters with neurons among their layers may have assigned the same ones; combine "
            "them on the text encoder"
        )
    _common_clip_skip(adapters)
    edits = {}
    for name in _edited_layers(adapters):
        edits[name] = _combine_layer(name, [a for a in adapters if name in a.edits])
    return edits


def _combine_layer(name: str, adapters: Sequence[ErasureAdapter]) -> LowRank:
    edits = [a.edits[name].to(torch.float64) for a in adapters]
    keys = [_keys_of(a, name) for a in adapters]
    X = torch.cat(keys, 1)
    R = torch.cat([f.B @ (f.A @ k) for f, k in zip(edits, keys, strict=True)], 1)
    total = stack(edits)
    AX = total.A @ X
    G = torch.linalg.pinv(AX, rtol=1e-10) @ total.A
    return orthonormal(stack([total, LowRank(R - total.B @ AX, G)]), rtol=1e-12)


def _keys_of(adapter: ErasureAdapter, name: str) -> Tensor:
    """`(d_in, n)`; all K/V linears share the keys of the encoder they read."""
    if isinstance(adapter.options, OtherMethod):
        raise AdapterStateError(
            f"an adapter by {adapter.options.method!r} holds no keys; it can only be added"
        )
    stored = (
        name if name in adapter.keys else next(k for k in adapter.keys if k.endswith(".states"))
    )
    return adapter.keys[stored].double().T
