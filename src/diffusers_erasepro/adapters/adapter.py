"""The adapter: spec, options, plan, base fingerprints, factors, keys and report of an erasure."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from ..config.options import Options, OtherMethod, read_options
from ..config.plan import Plan, Recipe
from ..config.spec import ErasureSpec
from ..config.text_files import write_text_file
from ..config.words import count_noun
from ..errors import AdapterFormatError, IllPosedError
from ..linalg.low_rank import LowRank
from .file import (
    digest_tensors,
    pack_tensors,
    read_tensors,
    serialize,
    unpack_tensors,
    write_atomically,
)
from .header import SCHEMA, format_measure, read_header, seal
from .hub import (
    CARD_NAME,
    PICTURES,
    WEIGHT_NAME,
    CommitOptions,
    FileOptions,
    Origin,
    check_weight_name,
    file_sha256,
    find,
    push,
)
from .report import Report, frobenius

MALFORMED = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What plain data of the wrong shape raises where a record is built from it."""


CANCELLED = 1e-6
"""||B A|| below this share of ||B|| ||A|| is rounding."""


@dataclass(frozen=True)
class ErasureAdapter:
    """A finished erasure: what to add to which layer, and what it takes to make it again.

    Raises:
        IllPosedError: It holds no edit, so that it would erase nothing.
    """

    spec: ErasureSpec
    options: Options | OtherMethod
    base: Mapping[str, Mapping[str, str]]
    """Component -> dtype -> fingerprint of the weights it was made for."""
    edits: Mapping[str, LowRank]
    """Stored name ("text_encoder.text_model...mlp.fc2") -> factors."""
    keys: Mapping[str, Tensor]
    """Stored name -> `(n, d_in)` inputs at the exact positions, in the edited stream.

    All K/V linears share "ENCODER.states".
    """
    goals: Mapping[str, Tensor]
    """Encoder -> `(n, d)` states the exact positions shall have."""
    report: Report
    plan: Plan = None  # type: ignore[assignment]
    """Where each concept is edited, and at which positions."""
    origin: Origin | None = field(default=None, compare=False)
    """The file it was loaded from, with its commit and sha256."""

    def __post_init__(self) -> None:
        if self.plan is None and isinstance(self.options, OtherMethod):
            recipe = Recipe((), self.options.alignment)
            object.__setattr__(self, "plan", Plan.uniform(self.spec.concepts, recipe))
        if not any(_changes_something(factors) for factors in self.edits.values()):
            names = ", ".join(repr(concept.target) for concept in self.spec.concepts[:3])
            zero = f"all {len(self.edits)} edits are zero" if self.edits else "no layer is edited"
            if not self.edits and self.report.notes:
                zero += f" ({'; '.join(self.report.notes)})"
            raise IllPosedError(
                f"an erasure of {names} without any edit would erase nothing: {zero}; choose "
                "layers that this pipeline reads, or another anchor"
            )

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the pipeline components it edits."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.edits))

    @property
    def goal_parts(self) -> tuple[str, ...]:
        """Names of the text encoders whose states have goals."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.goals))

    @property
    def clip_skip(self) -> int:
        """The `clip_skip` of the calls that it was made for."""
        if isinstance(self.options, OtherMethod):
            return int(self.options.settings.get("clip_skip", 0))
        return self.options.clip_skip

    @property
    def imported(self) -> bool:
        """Whether it came from another tool, without the keys to measure it or solve it again."""
        return not self.goals

    def of(self, component: str) -> dict[str, LowRank]:
        """The edits of one component, by stored name without the component."""
        prefix = f"{component}."
        return {k.removeprefix(prefix): v for k, v in self.edits.items() if k.startswith(prefix)}

    @cached_property
    def digest(self) -> str:
        """Sha256 of the tensors; two adapters with the same digest are the same edit."""
        return digest_tensors(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of its file, by name."""
        return pack_tensors(self.edits, self.keys, self.goals)

    def header(self) -> dict[str, Any]:
        """Everything about the adapter but its tensors, as plain data."""
        header: dict[str, Any] = {
            "schema": SCHEMA,
            "spec": self.spec.to_dict(),
            "options": self.options.to_dict(),
            "plan": self.plan.to_dict(),
            "base": {component: dict(prints) for component, prints in self.base.items()},
            "ranks": {name: factors.rank for name, factors in self.edits.items()},
            "report": self.report.to_dict(),
            "sha256": self.digest,
        }
        return header | {"seal": seal(header)}

    def to_bytes(self) -> bytes:
        """The content of its file; the same adapter gives the same bytes."""
        return serialize(self.tensors(), self.header())

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, weight_name: str = WEIGHT_NAME
    ) -> Path:
        """Write the adapter into a folder; the old file stays whole until the new one is.

        What was written is read back before it takes the old one's place. Only the adapter's file
        is written: `card(base_model=...).save("FOLDER/README.md")` puts a model card beside it, as
        `erasepro erase` and `push_to_hub` do.

        Returns:
            The path of the file.

        Raises:
            UnsafeFileError: `weight_name` is not a plain `.safetensors` file name.
            AdapterFormatError: It could not be read back; nothing was saved.
        """
        target = Path(save_directory) / check_weight_name(weight_name)
        write_atomically(target, self.to_bytes(), check=self._refuse_unlike)
        return target

    def _refuse_unlike(self, written: Path) -> None:
        """Raise AdapterFormatError unless a file holds this adapter."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its spec, whose maker has seen them
                found = self.from_origin(Origin(written, file_sha256(written)))
        except AdapterFormatError as error:
            why = str(error).replace(str(written), "the file")
            raise AdapterFormatError(
                f"what was written cannot be read back ({why}); nothing was saved"
            ) from error
        if found.digest != self.digest:
            raise AdapterFormatError(
                "what was written is read back as another adapter; nothing was saved. Please "
                "report it, with the spec"
            )

    def card(self, **about: Any) -> Any:
        """The adapter's model card; `about` as in `model_card.build_card`."""
        from .model_card import build_card

        return build_card(self.header(), **about)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        subfolder: str | None = None,
        weight_name: str = WEIGHT_NAME,
        base_model: str | None = None,
        license: str | None = None,
        pictures: Mapping[str, str | os.PathLike[str]] | None = None,
        **commit: Unpack[CommitOptions],
    ) -> str:
        """Publish the adapter with its card, its spec and images as one commit.

        Args:
            repo_id: "owner/name"; the repository is made if it is not there.
            subfolder: Where in the repository, for several adapters in one.
            weight_name: Name of the adapter's file.
            base_model, license: For the card, as in `model_card.build_card`.
            pictures: Prompt -> image file, for the card's gallery.
            commit: `private`, `revision`, `create_pr`, `token` and `commit_message`, as in
                `huggingface_hub.HfApi.upload_folder`.

        Returns:
            The url of the commit, or of the pull request.

        Raises:
            HubError: The Hub did not take it; the subclasses say why.
            AdapterFormatError: A picture is of a kind that the Hub does not show.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, weight_name=weight_name)
            write_text_file(folder / "spec.toml", self.spec.to_toml())
            gallery = {}
            for index, (prompt, file) in enumerate((pictures or {}).items()):
                gallery[prompt] = f"{index}{_suffix_of_picture(prompt, Path(file))}"
                shutil.copyfile(file, folder / gallery[prompt])
            card = self.card(
                repo_id=repo_id,
                base_model=base_model,
                license=license,
                pictures=gallery,
                subfolder=subfolder,
            )
            card.save(folder / CARD_NAME)
            return push(folder, repo_id, subfolder=subfolder, **commit)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **file: Unpack[FileOptions],
    ) -> ErasureAdapter:
        """Read an adapter from a file, a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: File, folder, or Hub id "owner/name".
            file: `weight_name` (the file's name inside the folder; needed if there are several),
                `subfolder` (a folder inside the folder or repository); `revision`, `token`,
                `cache_dir` and `local_files_only`, as in `huggingface_hub.hf_hub_download`.

        Raises:
            AdapterFormatError: Not an erasure adapter, or one of another schema.
            AdapterIntegrityError: The tensors are not those that were written.
            UnsafeFileError: A pickle, or a path that leads outside.
            HubError: The Hub did not give the file; the subclasses say why.
        """
        return cls.from_origin(find(pretrained_model_name_or_path, **file))

    @classmethod
    def from_origin(cls, origin: Origin) -> ErasureAdapter:
        """Read and check a file that was found.

        Raises:
            AdapterFormatError: Not an erasure adapter, or one of another schema.
            AdapterIntegrityError: The tensors are not those that were written.
        """
        header = read_header(origin.path)
        tensors = read_tensors(origin.path, header.get("sha256"))
        try:
            return _build(header, tensors, origin)
        except MALFORMED as error:
            raise AdapterFormatError(
                f"{origin.path}: the header does not describe its tensors ({error})"
            ) from error

    def __repr__(self) -> str:
        concepts = ", ".join(f"{c.target!r} -> {c.anchor!r}" for c in self.spec.concepts)
        return (
            f"ErasureAdapter({concepts}; {count_noun(len(self.edits), 'layer')}, "
            f"listed residual {format_measure(self.report.listed_residual, '.1e')})"
        )


def _suffix_of_picture(prompt: str, file: Path) -> str:
    """The suffix under which a picture is published.

    Raises:
        AdapterFormatError: The Hub shows no such files.
    """
    suffix = file.suffix.lower()
    if suffix not in PICTURES:
        raise AdapterFormatError(
            f"the picture of {prompt!r} is {file.name}, and the Hub shows {', '.join(PICTURES)}; "
            "convert it"
        )
    return suffix


def _changes_something(factors: LowRank) -> bool:
    """Whether B A is more than the rounding of factors that cancel."""
    largest = float(factors.B.double().norm() * factors.A.double().norm())
    return largest > 0 and frobenius(factors) > CANCELLED * largest


def _build(header: dict[str, Any], tensors: dict[str, Tensor], origin: Origin) -> ErasureAdapter:
    """The record of a file; what does not belong together raises one of `MALFORMED`."""
    stored = unpack_tensors(tensors, header["ranks"])
    reported = {layer["name"] for layer in header["report"]["layers"]}
    if not stored.edits or (reported and reported != set(stored.edits)):
        differ = sorted(reported ^ set(stored.edits))
        raise ValueError(f"layers {differ[:3]} are reported or stored, but not both")
    adapter = ErasureAdapter(
        spec=ErasureSpec.from_dict(header["spec"]),
        options=read_options(header["options"]),
        plan=Plan.from_dict(header["plan"]),
        base={str(part): _text_table(prints) for part, prints in header["base"].items()},
        edits=stored.edits,
        keys=stored.keys,
        goals=stored.goals,
        report=Report.from_dict(header["report"]),
        origin=origin,
    )
    if adapter.imported and isinstance(adapter.options, Options):
        raise ValueError("the goals are missing, without which nothing can be measured")
    if unknown := set(tensors) - set(adapter.tensors()):
        raise ValueError(f"unknown tensors {sorted(unknown)[:3]}")
    if unknown := set(adapter.components) - set(adapter.base):
        raise ValueError(f"no base is named for {sorted(unknown)}")
    return adapter


def _text_table(table: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in table.items()}
