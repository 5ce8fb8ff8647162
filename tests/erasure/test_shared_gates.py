"""Names that share tokens: a name within another has one gate for both, and rows are read first."""

import pytest
import torch

import tiny
from diffusers_erasepro import Concept, ErasureSpec, erase
from diffusers_erasepro.config.everyday import everyday_captions
from diffusers_erasepro.config.options import Options
from diffusers_erasepro.erasure.float32 import in_float32
from diffusers_erasepro.erasure.sites import gates
from diffusers_erasepro.erasure.sites.embeddings import embedding_sites
from diffusers_erasepro.erasure.sites.neurons import find_mlp
from diffusers_erasepro.erasure.sites.planning import Planning
from diffusers_erasepro.modules.storage import weight_of
from diffusers_erasepro.prompts.tokens import text_paths


def named(target, anchor="", **more):
    return Concept(target, anchor, ("a {}",), (), **more)


@pytest.fixture
def planned():
    """A function that gives the planning of concepts on a tiny causal encoder."""
    pipe = tiny.build("StableDiffusionPipeline")
    (path,) = text_paths(pipe)

    def plan(*concepts):
        spec = ErasureSpec(concepts, preserve=tiny.PRESERVE)
        options = Options(layers=("embedding", "gates:0"))
        with in_float32(path.encoder) as encoder:
            return Planning.of(pipe, path, encoder, spec, options, options.resolve(spec.concepts))

    return plan


@pytest.mark.parametrize(
    "concepts",
    [
        (named("heart", synonyms=("red heart",)),),
        (named("red heart"), named("heart")),
        (named("big red heart"), named("heart"), named("red heart")),
    ],
    ids=["synonym", "two concepts", "three"],
)
def test_a_name_within_another_has_one_gate_for_both(planned, concepts):
    planning = planned(*concepts)
    words = {word for concept in concepts for word in concept.words}
    (site,) = gates.gate_sites(planning)
    assert [str(name) for name in site.names] == ["heart#0"]
    assert site.words() == words
    told = gates.GateSite(**{**vars(site), "margins": (1.0,)})
    untold = gates.GateSite(**{**vars(site), "margins": (-1.0,)})
    assert told.unclear() == set()
    assert untold.unclear() == words
    answered = set()
    for kind, rows in site.positions.items():
        answered |= {planning.pairs[kind][i].word for i in rows.row.tolist()}
    assert answered == words


@pytest.mark.parametrize(
    "concepts",
    [
        (named("red heart"), named("blue heart")),
        (named("heart"), named("red heart", "a heart of stone")),
    ],
    ids=["neither holds the other", "another anchor"],
)
def test_other_names_have_gates_of_their_own(planned, concepts):
    (site,) = gates.gate_sites(planned(*concepts))
    assert {name.word for name in site.names} == {concept.target for concept in concepts}


def test_gates_are_told_apart_by_what_they_receive_once_rows_are_changed(planned):
    """As another token of the name may have another row, and its gate reads that."""
    planning = planned(named("star", "circle"))
    (site,) = embedding_sites(planning)
    planning.changed.update(site.rows)
    assert len(planning.changed) == 1
    mlp = find_mlp(planning.live, 0)
    rows = planning.rows["exact"]
    received = gates._at_positions(planning, mlp, rows)
    table = weight_of(planning.live, site.module)
    (token,) = planning.changed
    with torch.no_grad():
        table.T[token] = table.T[planning.changed.pop(token)]
    assert torch.allclose(gates._at_positions(planning, mlp, rows), received, atol=1e-6)


@pytest.mark.slow
def test_a_synonym_that_holds_the_name_takes_nothing_from_it(around_minilm):
    """ "van gogh" was no longer told from "vincent van gogh", and neither had a gate."""
    concept = Concept("van gogh", "a painter", templates="style", synonyms=("vincent van gogh",))
    spec = ErasureSpec((concept,), preserve=everyday_captions()[:300])
    made = erase(around_minilm, spec, layers=("embedding", "gates"), final_states=False)
    assert not any(" of 'van gogh' cannot be distinguished" in note for note in made.report.notes)
    assert made.report.left["name"] < 0.6
