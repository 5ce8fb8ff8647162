"""Whether an erasure holds on a tiny pipeline of any class, measured at its own `encode_prompt`."""

import tempfile
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

import siblings
from conftest import bits, same
from diffusers_erasepro import ErasureAdapter, ErasureSpec, erasable, erase
from diffusers_erasepro.config.options import Options
from diffusers_erasepro.config.plan import ALIGNMENTS, EMBEDDING, READERS
from diffusers_erasepro.errors import ErasureError
from diffusers_erasepro.families.encoders import embeddings_path, encoder_family_of
from diffusers_erasepro.families.observe import trace
from diffusers_erasepro.families.pipelines import family_of, get_component, reader_paths
from diffusers_erasepro.families.types import Use
from diffusers_erasepro.prompts.alignment import rows_of
from diffusers_erasepro.prompts.pairs import Pair, Prompt
from diffusers_erasepro.prompts.tokens import text_paths
from tiny import PRESERVE, STAR

ALLOWED = 1e-4
"""Largest residual of a listed prompt, in float32."""


@dataclass(frozen=True)
class Outcome:
    """What an erasure did on one class."""

    name: str
    holds: bool
    reads: str = ""
    """What the pipeline was seen to read."""
    residual: float = float("nan")
    reason: str = ""
    """Why it does not hold, or what of a prompt goes past the edit."""
    left_out: str = ""
    """Parts that the pipeline was built without."""
    layers: str = ""
    """Where it was erased."""


def try_class(name: str) -> Outcome:
    """Build a class, erase, save, load, compare, switch off and verify."""
    modular = name.endswith("ModularPipeline")
    cls = getattr(diffusers, name)
    if not modular and not (hasattr(cls, "encode_prompt") or hasattr(cls, "_encode_prompt")):
        return Outcome(name, False, reason="has no encode_prompt, so nothing can be observed")
    try:
        built = siblings.build_modular(name) if modular else siblings.build(name)
    except Exception as error:  # whatever a constructor does not take
        reason = f"cannot be built small: {type(error).__name__}: {error}"
        return Outcome(name, False, reason=_short(reason))
    left_out = ", ".join(built.left_out)
    reads = ""
    layers = ""
    notes: tuple[str, ...] = ()
    try:
        family = family_of(built.pipe)
        reads = "; ".join(map(_describe_use, family.encoders))
        notes = family.notes
        layers = ", ".join(map(str, layers_for(built.pipe) or ("blocks",)))
        residual = try_pipeline(built.pipe)
    except (ErasureError, AssertionError) as error:
        reason = "; ".join([str(error), *notes])
        return Outcome(name, False, reads, reason=_short(reason), left_out=left_out, layers=layers)
    except Exception as error:  # listed, never counted as holding
        reason = f"{type(error).__name__}: {error}"
        return Outcome(name, False, reads, reason=_short(reason), left_out=left_out, layers=layers)
    return Outcome(name, True, reads, residual, _short("; ".join(notes)), left_out, layers)


def _describe_use(use: Use) -> str:
    return f"{use.encoder}: {', '.join(map(str, use.readings))}"


def layers_for(pipe: Any) -> tuple:
    """Encoder blocks, or the denoiser's readers where a norm closes every block.

    Rows of the token embedding, where neither reaches what is read: embeddings before any block,
    states beside a picture, tokens that a later block reads, or states of closed blocks that no
    linear alone reads.
    """
    family = family_of(pipe)
    records = [encoder_family_of(path.encoder) for path in text_paths(pipe)]
    closed = all(record.writer is None for record in records)
    shown = any(use.picture for use in family.encoders)
    before = any("hidden_states[0]" in note for note in family.notes)
    later = any(record.rows_only for record in records)
    if shown or before or later or (closed and family.read_whole is None):
        return (EMBEDDING,)
    return (READERS,) if closed else Options().layers


def try_pipeline(pipe: Any) -> float:
    """The residual of the listed prompt; an assertion fails where the erasure does not hold."""
    before = bits(pipe)
    layers = layers_for(pipe)
    spec = ErasureSpec((STAR,), preserve=PRESERVE)
    made = erase(pipe, spec, layers=layers, measure=False)  # of two hundred classes
    assert same(bits(pipe), before), "erase changed bits of the pipeline"
    base = _received(pipe, STAR.target, layers)
    goal = _received(pipe, STAR.anchor, layers)
    pipe = erasable(pipe)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        pipe.load_erasure_adapter(ErasureAdapter.from_pretrained(folder))
    start = _largest(base, goal)
    assert start > 1e-3, f"target and anchor are encoded alike ({start:.1e})"
    residual = _largest(_received(pipe, STAR.target, layers), goal)
    assert residual <= ALLOWED, f"residual {residual:.1e} at encode_prompt, {ALLOWED} is allowed"
    assert pipe.verify_erasure(raise_on_fail=True).ok, "verify_erasure is not ok"
    pipe.disable_erasure()
    assert same(bits(pipe), before), "off is not the base"
    assert _largest(_received(pipe, STAR.target, layers), base) == 0, (
        "off does not encode as before"
    )
    return residual


@torch.no_grad()
def _received(pipe: Any, words: str, layers: tuple) -> list[torch.Tensor]:
    """What `encode_prompt` returns of "a `words`" at the positions that an erasure aligns.

    Per tensor `(n, d)`; with readers alone, what they make of it.
    """
    pair = Pair(Prompt.of("a {}", STAR.target), Prompt.of("a {}", STAR.anchor))
    positions = {}
    later = []
    for path in text_paths(pipe):
        rows = rows_of([pair], path, ALIGNMENTS["last_subject+eos"])
        at = rows.target_at if words == STAR.target else rows.anchor_at
        if encoder_family_of(path.encoder).rows_only:
            table = path.encoder.get_submodule(embeddings_path(path.encoder))
            later.append(table(path.tokens([f"a {words}"]).ids)[:, at])
        else:
            positions[path.use.encoder] = at.tolist()
    picture = family_of(pipe).encoders[0].picture
    traced = trace(pipe, f"a {words}", positions, picture=picture)
    found = [x[where].reshape(1, -1) for x, where in traced] + later
    if layers != (READERS,):
        return found
    (states,) = found
    family = family_of(pipe)
    denoiser = get_component(pipe, family.denoiser)
    norm = family.encoders[0].readings[0].norm
    count = len(next(iter(positions.values())))
    states = states.reshape(count, -1)
    states = denoiser.get_submodule(norm)(states) if norm else states
    return [denoiser.get_submodule(path)(states) for path in reader_paths(denoiser, family)]


def _largest(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """The largest ||a - b|| / ||b|| of the tensors."""
    assert [x.shape for x in some] == [x.shape for x in others], "other elements are returned"
    return max(float((a - b).norm() / b.norm()) for a, b in zip(some, others, strict=True))


def _short(text: str, most: int = 300) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[:most]}…"
