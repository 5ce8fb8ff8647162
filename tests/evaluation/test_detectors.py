"""Detectors by name: each sees what it says, refuses what it cannot see, and says what to install.

The explicit classes of NudeNet cannot be tested: no registry carries pictures that show them. Its
classes of faces are, on photographs, through the same code.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import CLIPProcessor, CLIPVisionModel

import tiny
from diffusers_erasepro import Concept
from diffusers_erasepro.errors import EvaluationError
from diffusers_erasepro.evaluation.detectors import find_detector, list_detectors
from diffusers_erasepro.evaluation.detectors.clip import ClipDetector
from diffusers_erasepro.evaluation.detectors.nudenet import EXPOSED, INSTALL

STAR = Concept("star", "circle")
RED = Image.new("RGB", (32, 32), "red")
PHOTOGRAPHS = "pip install nudenet==3.4.2 && pip install --no-deps scikit-image"


def photograph(name):
    """A photograph that scikit-image's package carries; its package is not imported."""
    found = importlib.util.find_spec("skimage")
    if found is None or importlib.util.find_spec("nudenet") is None:
        pytest.skip(f"needs `{PHOTOGRAPHS}`")
    return Image.open(Path(found.origin).parent / "data" / f"{name}.png")


def test_nudenet_sees_a_face_where_a_person_is_and_none_elsewhere():
    images = [photograph(name) for name in ("astronaut", "chelsea", "coffee", "coins", "grass")]
    faces = find_detector("nudenet:FACE_FEMALE,FACE_MALE")
    assert faces(images, Concept("woman", "man")) == [True, False, False, False, False]
    (found, *others) = faces.find_classes(images)
    assert found == {"FACE_FEMALE": pytest.approx(0.72, abs=0.05)} and not any(others)
    assert find_detector("nudenet")(images, Concept("nude")) == [False] * 5  # all are dressed


def test_nudenet_is_pinned_and_sees_bodies_alone():
    photograph("astronaut")
    detector = find_detector("nudenet")
    assert "3.4.2, threshold 0.6" in detector.name and detector.classes == EXPOSED
    for concept in (Concept("nude"), Concept("undressed person", templates="nudity")):
        detector.check(None, concept)
    with pytest.raises(EvaluationError, match=r"cannot see 'star'.*clip:REPO"):
        detector.check(None, STAR)
    with pytest.raises(EvaluationError, match="no class 'FACE'"):
        find_detector("nudenet:FACE")


def test_what_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(EvaluationError, match=INSTALL):
        find_detector("nudenet")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny.save_clip(tmp_path_factory.mktemp("clip"))


def test_clip_of_a_folder_answers_for_every_image_in_order(clip_folder):
    detector = find_detector(f"clip:{clip_folder}")
    detector.check(None, STAR)
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue", "white")]
    together = detector(images, STAR)
    assert len(together) == 4 and [detector([i], STAR)[0] for i in images] == together
    assert len(detector.score(images, ["a star"] * 4)) == 4


def test_clip_sees_the_nearest_of_the_words():
    import torch

    words = {"star": 0, "circle": 1}

    def texts(phrases):
        names = [next((w for w in words if w in phrase), None) for phrase in phrases]
        return torch.eye(3)[[words.get(name, 2) for name in names]]

    def images(pictures):
        return torch.eye(3)[[{"red": 0, "lime": 1, "blue": 2}[picture] for picture in pictures]]

    seen = ClipDetector("made up", images, texts)(["red", "lime", "blue", "red"], STAR)
    assert seen == [True, False, False, True]


def test_text_to_concept_fits_a_trunk_on_a_folder_of_pictures(clip_folder, tmp_path):
    for i in range(40):
        Image.new("RGB", (32, 32), (6 * i, 255 - 6 * i, i)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    vision = CLIPVisionModel.from_pretrained(clip_folder)
    vision.save_pretrained(tmp_path / "trunk")
    CLIPProcessor.from_pretrained(clip_folder).image_processor.save_pretrained(tmp_path / "trunk")
    name = f"text_to_concept:{tmp_path / 'trunk'},{clip_folder},{tmp_path}"
    assert len(find_detector(name)([RED, RED], STAR)) == 2


def test_a_function_of_ones_own_is_a_detector(tmp_path, monkeypatch):
    code = "def sees(images, concept):\n    return [i.size[0] > 32 for i in images]\n"
    (tmp_path / "my_detector.py").write_text(code, encoding="utf-8")
    (tmp_path / "wrong_detector.py").write_text("sees = lambda images, c: []", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    detector = find_detector("my_detector:sees")
    assert detector([RED, RED.resize((64, 64))], STAR) == [False, True]
    with pytest.raises(EvaluationError, match="0 answers for 1 images"):
        find_detector("wrong_detector:sees")([RED], STAR)
    with pytest.raises(EvaluationError, match="has no function 'hears'"):
        find_detector("my_detector:hears")


def test_another_packages_detector_is_found_by_its_entry_point(tmp_path, monkeypatch):
    info = tmp_path / "blind-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: blind\nVersion: 1.0\n", encoding="utf-8")
    entries = "[diffusers_erasepro.detectors]\nblind = blind_detector:load\n"
    (info / "entry_points.txt").write_text(entries, encoding="utf-8")
    code = """
class Blind:
    def __init__(self, argument): self.name = f"blind {argument}"
    def check(self, pipe, concept): pass
    def __call__(self, images, concept): return [False] * len(images)
load = Blind
"""
    (tmp_path / "blind_detector.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "blind" in list_detectors()
    detector = find_detector("blind:as a bat")
    assert detector.name == "blind as a bat" and detector([RED], STAR) == [False]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("magic", r"no detector 'magic' \(known: clip, glyphs, nudenet, pictures"),
        ("clip", "clip:openai/clip-vit-large-patch14"),
        ("text_to_concept", "needs its three parts"),
        ("glyphs:ears", "takes 'words' or nothing"),
        ("no_such_module_here:sees", "No module named 'no_such_module_here'"),
    ],
)
def test_a_wrong_name_is_one_clear_line(name, says):
    with pytest.raises(EvaluationError, match=says):
        find_detector(name)


def test_a_clip_that_is_none_is_one_clear_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(EvaluationError, match=f"{tmp_path.name} holds no CLIP"):
        find_detector(f"clip:{tmp_path}")


def test_the_pictures_world_has_its_judge_and_its_words(world):
    pipe = world.load_pipeline("unet")
    noise = [tiny.torch.Generator().manual_seed(0)]
    settings = {"num_inference_steps": 10, "guidance_scale": 4.0, "generator": noise}
    image = pipe("a strawberry by Noto on white", **settings).images[0]
    strawberry = Concept("strawberry", "key")
    for name in ("pictures", "pictures:words"):
        detector = find_detector(name)
        detector.check(pipe, strawberry)
        assert detector([image], strawberry) == [True], name
        assert detector([image], Concept("key", "strawberry")) == [False], name
    with pytest.raises(EvaluationError, match=r"no 'piza'.*'pizza'"):
        find_detector("pictures").check(pipe, Concept("piza"))
