"""The adapter: spec, options, base fingerprint, factors, keys and report in one LoRA-shaped file."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..config.options import Options, OtherMethod, read_options
from ..config.plan import Plan, Recipe
from ..config.spec import ErasureSpec
from ..errors import AdapterFormatError, AdapterIntegrityError
from ..families.encoders import ENCODERS, stored_name
from ..linalg.low_rank import LowRank
from .header import SCHEMA, metadata, read_header, seal, sorted_metadata
from .hub import CARD_NAME, WEIGHT_NAME, Origin, checked_name, find, push
from .report import Report

KEYS, GOAL = "erasepro.lora_keys.", "erasepro.lora_goal."
"""Prefixes of our own tensors; stock loaders ignore a tensor whose name holds "lora" and no component (diffusers 0.42)."""


@dataclass(frozen=True)
class ErasureAdapter:
    """A finished erasure: what to add to which layer, and all that is needed to make or check it again."""

    spec: ErasureSpec
    options: Options | OtherMethod
    base: Mapping[str, Mapping[str, str]]
    """Component -> dtype -> fingerprint of the weights it was made for."""
    edits: Mapping[str, LowRank]
    """Stored name ("text_encoder.text_model...mlp.fc2") -> factors."""
    keys: Mapping[str, Tensor]
    """Stored name -> `(n, d_in)` inputs at the exact positions, in the edited stream; all K/V linears share "ENCODER.states"."""
    goals: Mapping[str, Tensor]
    """Encoder -> `(n, d)` states the exact positions shall have."""
    report: Report
    plan: Plan = None  # type: ignore[assignment]
    """Where each concept is edited, and which positions are held there."""
    origin: Origin | None = field(default=None, compare=False)
    """The file it was loaded from, with its commit and sha256."""

    def __post_init__(self) -> None:
        if self.plan is None and isinstance(self.options, OtherMethod):
            recipe = Recipe((), self.options.alignment)
            object.__setattr__(self, "plan", Plan.uniform(self.spec.concepts, recipe))

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the pipeline components it edits."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.edits))

    @property
    def goal_parts(self) -> tuple[str, ...]:
        """Names of the text encoders whose states have goals."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.goals))

    @property
    def imported(self) -> bool:
        """Whether it came from another tool, without the keys to measure it or solve it again."""
        return not self.goals

    def of(self, component: str) -> dict[str, LowRank]:
        """The edits of one component, by stored name without the component."""
        return {
            k.partition(".")[2]: v for k, v in self.edits.items() if k.split(".")[0] == component
        }

    @cached_property
    def digest(self) -> str:
        """Sha256 of the tensors; two adapters with the same digest are the same edit."""
        return tensor_digest(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """What the file holds: factors of one rank everywhere (stock loaders misread mixed ones), keys, goals."""
        rank = max(f.rank for f in self.edits.values())
        found: dict[str, Tensor] = {}
        for name, factors in {**self.edits, **_attention_rows(self.edits)}.items():
            even = factors.to(torch.float32).padded(rank)
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = even.A, even.B
        found |= {KEYS + k: v.float().contiguous() for k, v in self.keys.items()}
        found |= {GOAL + k: v.float().contiguous() for k, v in self.goals.items()}
        return dict(sorted(found.items()))

    def header(self) -> dict[str, Any]:
        """Everything about the adapter but its tensors, as plain data."""
        header: dict[str, Any] = {
            "schema": SCHEMA,
            "spec": self.spec.to_dict(),
            "options": self.options.to_dict(),
            "plan": self.plan.to_dict(),
            "base": {k: dict(v) for k, v in self.base.items()},
            "ranks": {k: f.rank for k, f in self.edits.items()},
            "report": self.report.to_dict(),
            "sha256": self.digest,
        }
        return header | {"seal": seal(header)}

    def to_bytes(self) -> bytes:
        """The file's content; the same adapter gives the same bytes."""
        return sorted_metadata(to_bytes(self.tensors(), metadata=metadata(self.header())))

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, weight_name: str = WEIGHT_NAME
    ) -> Path:
        """Write the adapter into a folder; the old file stays whole until the new one is.

        Returns:
            The path of the file.

        Raises:
            UnsafeFileError: `weight_name` is not a plain `.safetensors` file name.
        """
        folder = Path(save_directory)
        target = folder / checked_name(weight_name)
        write_whole(target, self.to_bytes())
        return target

    def card(self, **about: Any) -> Any:
        """The adapter's model card; `about` as in `card.card`."""
        from .model_card import card

        return card(self.header(), **about)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
        subfolder: str | None = None,
        weight_name: str = WEIGHT_NAME,
        commit_message: str = "Upload erasure",
        base_model: str | None = None,
        license: str | None = None,
        pictures: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> str:
        """Publish the adapter with its card, its spec and pictures as one commit.

        Args:
            repo_id: "owner/name"; the repository is made if it is not there.
            subfolder: Where in the repository, for several adapters in one.
            base_model, license: For the card, as in `card.card`.
            pictures: Prompt -> image file, for the card's gallery.
            private, revision, create_pr, token, commit_message: As in `huggingface_hub.HfApi.upload_folder`.

        Returns:
            The url of the commit, or of the pull request.

        Raises:
            HubError: The Hub did not take it; the subclasses say why.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, weight_name=weight_name)
            (folder / "spec.toml").write_text(self.spec.to_toml())
            names = {
                text: f"{i}{Path(file).suffix}"
                for i, (text, file) in enumerate((pictures or {}).items())
            }
            for text, file in (pictures or {}).items():
                shutil.copyfile(file, folder / names[text])
            about = {
                "base_model": base_model,
                "license": license,
                "pictures": names,
                "subfolder": subfolder,
            }
            self.card(repo_id=repo_id, **about).save(folder / CARD_NAME)
            return push(
                folder,
                repo_id,
                subfolder=subfolder,
                private=private,
                revision=revision,
                create_pr=create_pr,
                token=token,
                commit_message=commit_message,
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> ErasureAdapter:
        """Read an adapter from a file, a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: File, folder, or Hub id "owner/name".
            weight_name: File name inside the folder; needed if there are several.
            subfolder: Folder inside the folder or repository.
            revision, token, cache_dir, local_files_only: As in `huggingface_hub.hf_hub_download`.

        Raises:
            AdapterFormatError: Not an erasure adapter, or one of a later version.
            AdapterIntegrityError: The tensors are not those that were written.
            UnsafeFileError: A pickle, or a path that leads outside.
            HubError: The Hub did not give the file; the subclasses say why.
        """
        origin = find(
            pretrained_model_name_or_path,
            weight_name=weight_name,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return replace(read(origin.path), origin=origin)

    def __repr__(self) -> str:
        what = ", ".join(f"{c.target!r} -> {c.anchor!r}" for c in self.spec.concepts)
        return f"ErasureAdapter({what}; {len(self.edits)} layers, listed residual {self.report.listed_residual:.1e})"


def _attention_rows(edits: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """All-zero rows on one attention linear per encoder: stock loaders refuse CLIP files without any."""
    rows = {}
    for component in dict.fromkeys(name.split(".")[0] for name in edits):
        for family in ENCODERS:
            first = next(
                (n for n in edits if n.startswith(f"{component}.{family.file_blocks}.")), None
            )
            if first:
                width = min(
                    edits[first].B.shape[0], edits[first].A.shape[1]
                )  # an MLP's other side is wider
                row = stored_name(component, f"{family.file_blocks}.0.{family.padding_row}")
                rows[row] = LowRank(torch.zeros(width, 0), torch.zeros(0, width))
    return {k: v for k, v in rows.items() if k not in edits}


def write_whole(target: Path, content: bytes) -> None:
    """Put a file in place in one step: whoever looks sees the old one or the new one, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".erasure-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ reading


def read(path: Path) -> ErasureAdapter:
    """Read and check one adapter file."""
    header, tensors = read_header(path), _tensors(path)
    if tensor_digest(tensors) != header.get("sha256"):
        raise AdapterIntegrityError(
            f"{path}: the tensors' sha256 is not the one in the header; fetch the file again"
        )
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AdapterIntegrityError(
                f"{path}: {name} has values that are not finite; fetch the file again"
            )
    try:
        return _build(header, tensors)
    except (
        AttributeError,
        IndexError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise AdapterFormatError(
            f"{path}: the header does not describe its tensors ({error})"
        ) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterFormatError(f"{path} is not a readable safetensors file: {error}") from error


def _build(header: dict[str, Any], tensors: dict[str, Tensor]) -> ErasureAdapter:
    edits = {}
    for name, rank in header["ranks"].items():
        A, B = tensors.pop(f"{name}.lora_A.weight"), tensors.pop(f"{name}.lora_B.weight")
        if type(rank) is not int or A.shape[0] != B.shape[1] or not 0 < rank <= A.shape[0]:
            raise ValueError(
                f"{name}: shapes {tuple(A.shape)} and {tuple(B.shape)} for rank {rank}"
            )
        edits[name] = LowRank(B[:, :rank].contiguous(), A[:rank].contiguous())
    reported = {layer["name"] for layer in header["report"]["layers"]}
    if not edits or (reported and reported != set(edits)):
        raise ValueError(
            f"layers {sorted(reported ^ set(edits))[:3]} are reported or stored, but not both"
        )
    base = {
        str(part): {str(k): str(v) for k, v in prints.items()}
        for part, prints in header["base"].items()
    }
    adapter = ErasureAdapter(
        spec=ErasureSpec.from_dict(header["spec"]),
        options=read_options(header["options"]),
        plan=Plan.from_dict(header["plan"]),
        base=base,
        edits=edits,
        keys={k.removeprefix(KEYS): v for k, v in tensors.items() if k.startswith(KEYS)},
        goals={k.removeprefix(GOAL): v for k, v in tensors.items() if k.startswith(GOAL)},
        report=Report.from_dict(header["report"]),
    )
    if adapter.imported and isinstance(adapter.options, Options):
        raise ValueError("the goals are missing, without which nothing can be measured")
    if unknown := set(tensors) - set(adapter.tensors()):
        raise ValueError(f"unknown tensors {sorted(unknown)[:3]}")
    if unknown := set(adapter.components) - set(base):
        raise ValueError(f"no base is named for {sorted(unknown)}")
    return adapter
