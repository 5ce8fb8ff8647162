"""A running service, asked from outside: its health, its pictures, and what neither can show."""

from __future__ import annotations

import http.client
import io
import json
import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..adapters.header import read_header
from ..adapters.lockfile import find_pinned
from ..config.spec import Concept, ErasureSpec
from ..config.words import fill
from ..errors import EvaluationError
from .metrics import pixel_change
from .verdicts import Threshold, Verdict, worst_verdict

TIMEOUT = 120
"""Seconds for an answer; a picture takes its time."""
MOST_BYTES = 64 * 2**20
"""Of an answer."""
ASKED_CONCEPTS = 4
"""Concepts that are asked for, at most."""
CONTROL = "a street market in the rain"
ALIKE = Threshold(0.25, 0.5)
"""How far the target's picture is from the anchor's, in units of how far both are from another
prompt's. Of an exact erasure a listed prompt's two pictures are the same."""
UNSEEN = (
    "which weights run: the health report is the service's own word",
    "prompts that were not asked here, other routes, and whatever takes embeddings or images",
    "what whoever runs the service can do to it later",
)
"""What nobody can see from outside."""


@dataclass(frozen=True)
class Service:
    """Where to ask, and how; the defaults are those of `examples/serve.py`."""

    url: str
    health: str = "/health"
    draw: str = "/draw"

    def read_health(self) -> tuple[int, dict[str, Any]]:
        """Status and report of the health endpoint.

        Raises:
            EvaluationError: It does not answer, or with no JSON object.
        """
        status, content = self._ask(self.health, None)
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise EvaluationError(
                f"{self.url}{self.health} answered {status} with no JSON object; --health names "
                "another path"
            )
        return status, found

    def generate(self, prompt: str, seed: int) -> Image.Image:
        """The service's picture.

        Raises:
            EvaluationError: It gave none.
        """
        status, content = self._ask(self.draw, {"prompt": prompt, "seed": seed})
        try:
            return Image.open(io.BytesIO(content)).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            said = content[:120].decode("utf-8", "replace")
            raise EvaluationError(
                f"{self.url}{self.draw} answered {status} and no picture to {prompt!r}: {said!r}; "
                "it must take a JSON object with prompt and seed (--draw names another path)"
            ) from error

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
        if not self.url.startswith(("http://", "https://")):
            raise EvaluationError(f"{self.url!r} is no http or https address of a service")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.status, answer.read(MOST_BYTES)
        except urllib.error.HTTPError as error:
            return error.code, error.read(MOST_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise EvaluationError(
                f"{self.url}{path} does not answer: {reason}; is the service running there?"
            ) from error


@dataclass(frozen=True)
class Finding:
    """One thing that was seen."""

    verdict: Verdict
    text: str


@dataclass(frozen=True)
class ServiceReport:
    """What was seen of a service, and what cannot be."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    unseen: tuple[str, ...] = UNSEEN


def check_service(service: Service, lock: Path, *, seed: int = 0) -> ServiceReport:
    """Ask a service for its health and for pictures of what a lock's adapters erase.

    Args:
        service: Where it runs.
        lock: The `erasures.lock` of what it should have on.
        seed: Of every picture.

    Raises:
        EvaluationError: The service does not answer, or not as one.
        AdapterFormatError, AdapterIntegrityError, HubError: The lock, or a file of it.
    """
    pinned = find_pinned(lock)
    concepts: list[Concept] = []
    for origin in pinned.values():
        concepts += ErasureSpec.from_dict(read_header(origin.path)["spec"]).concepts
    findings = _check_health(service, {name: origin.sha256 for name, origin in pinned.items()})
    for concept in concepts[:ASKED_CONCEPTS]:
        findings.append(_check_pictures(service, concept, seed))
    return ServiceReport(worst_verdict(f.verdict for f in findings), tuple(findings))


def _check_health(service: Service, pinned: Mapping[str, str]) -> list[Finding]:
    """What the health report says of the pinned adapters: by name, and by hash where it has it."""
    status, report = service.read_health()
    well = status == 200 and report.get("ok") is True
    words = f"health answers {status}, ok {report.get('ok')}"
    if isinstance(report.get("residual"), int | float):
        words += f", residual {report['residual']:.1e}"
    findings = [Finding(Verdict.good if well else Verdict.bad, words)]
    states = report.get("erased")
    hashes = report.get("files")
    for name, sha256 in pinned.items():
        if not isinstance(states, dict):
            findings.append(Finding(Verdict.look, f"health does not say whether {name!r} is on"))
            continue
        if states.get(name) is not True:
            findings.append(Finding(Verdict.bad, f"{name!r} is pinned and not on"))
        elif not isinstance(hashes, dict) or name not in hashes:
            text = f"{name!r} is on, and health does not say which file it is"
            findings.append(Finding(Verdict.look, text))
        elif hashes[name] != sha256:
            text = f"{name!r} is another file ({str(hashes[name])[:12]}, pinned {sha256[:12]})"
            findings.append(Finding(Verdict.bad, text))
        else:
            findings.append(Finding(Verdict.good, f"{name!r} is on, the pinned file"))
    return findings


def _check_pictures(service: Service, concept: Concept, seed: int) -> Finding:
    """Whether a listed prompt gives the anchor's picture, measured against another prompt's."""
    phrase = concept.kind.exact[0]
    asked = fill(phrase, concept.target)[0]
    meant = fill(phrase, concept.anchor)[0].strip() or CONTROL
    target = service.generate(asked, seed)
    again = service.generate(asked, seed)
    if _distance(target, again) > 0:
        text = f"{asked!r} gave two pictures from one seed, so pictures cannot be compared"
        return Finding(Verdict.look, text)
    anchor = service.generate(meant, seed)
    other = service.generate(CONTROL, seed)
    apart = (_distance(target, other) + _distance(anchor, other)) / 2
    if apart == 0:
        return Finding(Verdict.look, f"{asked!r} and {CONTROL!r} give one picture")
    share = _distance(target, anchor) / apart
    text = (
        f"{asked!r} and {meant!r} differ by {share:.3f} of how far they are from {CONTROL!r} "
        f"({ALIKE})"
    )
    return Finding(ALIKE.judge(share), text)


def _distance(one: Image.Image, other: Image.Image) -> float:
    return math.sqrt(pixel_change([one], [other])[0])
