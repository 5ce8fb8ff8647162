"""Find an adapter's file at a path, in a folder or on the Hub; name the Hub's failures."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ..errors import (
    AdapterFormatError,
    AdapterIntegrityError,
    HubAccessError,
    HubError,
    HubNotFoundError,
    HubRateLimitError,
    UnsafeFileError,
)

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
CARD_NAME = "README.md"
HAS_FOLDERS = re.compile(r"[/\\\x00-\x1f\x7f]|^[A-Za-z]:")
"""What makes a file name lead elsewhere, on any system."""
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""A git blob's sha1, or a sha256."""
CARD_MARK = "<!-- written by erasepro; delete this line to keep your own text on the next push -->"


class FileOptions(TypedDict, total=False):
    """Which file to find; the last four as in `huggingface_hub.hf_hub_download`."""

    weight_name: str | None
    subfolder: str | None
    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool


class CommitOptions(TypedDict, total=False):
    """How to publish; as in `huggingface_hub.HfApi.upload_folder`."""

    private: bool | None
    revision: str | None
    create_pr: bool
    token: str | bool | None
    commit_message: str


@dataclass(frozen=True)
class Origin:
    """Where an adapter's file was found, and what it was."""

    path: Path
    sha256: str
    """Of the whole file."""
    repo: str = ""
    """Hub id; empty for local files."""
    commit: str = ""
    """The commit that the revision stood for when it was loaded."""
    subfolder: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit[:12]}" if self.repo else str(self.path)


def check_weight_name(weight_name: str) -> str:
    """`weight_name` if it is a plain safetensors file name."""
    plain = not HAS_FOLDERS.search(weight_name) and not weight_name.startswith((".", "-"))
    if not plain or not weight_name.endswith(".safetensors"):
        raise UnsafeFileError(
            f"weight_name {weight_name!r} must be a plain file name ending in .safetensors, "
            "without folders"
        )
    return weight_name


def find(
    where: str | os.PathLike[str],
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Origin:
    """The adapter file named by a path or a Hub id.

    Args:
        where: File, folder, or Hub id "owner/name".
        weight_name: File name inside the folder; needed if there are several.
        subfolder: Folder inside the folder or repository.
        revision: Branch, tag or commit; anything but a full commit warns, because it may move.
        token, cache_dir, local_files_only: As in `huggingface_hub.hf_hub_download`.

    Raises:
        AdapterFormatError: No such file here.
        HubError: The Hub did not give it; the subclasses say why.
        AdapterIntegrityError: What arrived is not what the Hub announced.
        UnsafeFileError: A path that leads outside.
    """
    path = Path(where)
    if weight_name is not None:
        check_weight_name(weight_name)
    if subfolder and not (path / subfolder).resolve().is_relative_to(path.resolve()):
        raise UnsafeFileError(
            f"subfolder {subfolder!r} leads out of {where}; give a folder inside it"
        )
    if path.is_file():
        return Origin(path, file_sha256(path))
    if path.is_dir():
        found = _find_in_folder(path / (subfolder or ""), weight_name)
        return Origin(found, file_sha256(found))
    if is_local(where) or (revision is None and is_beside_folders(path)):
        raise AdapterFormatError(
            f"no file or folder at {where}{suggest_path(path)}; give a path that exists, or a Hub "
            "id 'owner/name' (with revision=, where a folder here is called like its owner)"
        )
    return _download(
        str(where),
        weight_name or WEIGHT_NAME,
        subfolder=subfolder,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )


def is_local(where: str | os.PathLike[str]) -> bool:
    """Whether a name that is no file or folder can only have meant one: no Hub id looks so."""
    name = str(where)
    mistyped = name.startswith((".", "~")) or name.endswith(("/", ".safetensors")) or "\\" in name
    return mistyped or Path(where).is_absolute() or name.count("/") != 1


def is_beside_folders(path: Path) -> bool:
    """Whether `path` is not there and the folder that it names is: a mistyped name."""
    return path.parent != Path(".") and path.parent.is_dir()


def suggest_path(path: Path) -> str:
    """A name there that is nearly the one given, to go into a message; empty if there is none."""
    above = path.parent
    if not above.is_dir():
        return ""
    names = [entry.name for entry in above.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f" (did you mean {str(above / near[0])!r}?)" if near else ""


def file_sha256(path: Path) -> str:
    """Sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find_in_folder(folder: Path, weight_name: str | None) -> Path:
    if weight_name:
        candidates = [folder / weight_name]
    elif (folder / WEIGHT_NAME).is_file():
        candidates = [folder / WEIGHT_NAME]
    else:
        # hidden ones are other programs' own, such as "._no-star.safetensors" of a Mac
        found = sorted(folder.glob("*.safetensors"))
        candidates = [path for path in found if not path.name.startswith(".")]
    if len(candidates) > 1:
        raise AdapterFormatError(
            f"{folder} holds {[c.name for c in candidates]}; say which by weight_name=, or give "
            f"the file itself, such as {str(candidates[0])!r}"
        )
    if not candidates or not candidates[0].is_file():
        raise AdapterFormatError(f"no {weight_name or 'safetensors file'} in {folder}")
    return candidates[0]


def copy_to(origin: Origin, folder: Path) -> Path:
    """Copy the file into a folder, under its own name."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(origin.path, folder / origin.path.name))


# --- from the Hub


def _download(
    repo: str, name: str, *, subfolder: str | None, revision: str | None, **access: Any
) -> Origin:
    from huggingface_hub import hf_hub_download

    with translate_hub_errors(f"{repo}/{name}" + (f" at {revision}" if revision else "")):
        path = Path(hf_hub_download(repo, name, subfolder=subfolder, revision=revision, **access))
    sha256 = _check_download(path)
    commit = path.parts[path.parts.index("snapshots") + 1]
    if revision != commit:
        warnings.warn(
            f"{repo} is not pinned: {revision or 'main'} is commit {commit} today and may move; "
            f"pass revision={commit!r}, or pin it with `erasepro pull {repo} --lock erasures.lock`",
            stacklevel=4,
        )
    return Origin(path, sha256, repo, commit, subfolder or "")


def _check_download(path: Path) -> str:
    """Sha256 of a cached file, after a comparison with the hash the Hub announced.

    The cache names a blob after its etag: sha256 for large files, git's sha1 for others. A wrong
    file is removed from the cache.
    """
    blob = path.resolve()
    sha256 = file_sha256(path)
    # without links the cache holds the file itself, under its own name: nothing to compare with
    if blob.parent.name != "blobs" or not HASH.fullmatch(blob.name):
        return sha256
    content = path.read_bytes()
    git = hashlib.sha1(
        f"blob {len(content)}\0".encode() + content, usedforsecurity=False
    ).hexdigest()
    plain = hashlib.sha1(content, usedforsecurity=False).hexdigest()  # what some mirrors announce
    expected = sha256 if len(blob.name) == 64 else git
    if blob.name not in (expected, plain):
        path.unlink()
        blob.unlink(missing_ok=True)
        raise AdapterIntegrityError(
            f"{path.name}: the Hub announced {blob.name[:12]}, {expected[:12]} arrived; "
            "fetch it again"
        )
    return sha256


@contextmanager
def translate_hub_errors(what: str) -> Iterator[None]:
    """Turn the Hub client's failures into ours, each with what to do."""
    from huggingface_hub import errors as hf

    try:
        yield
    except (hf.GatedRepoError, hf.LocalTokenNotFoundError) as error:
        raise HubAccessError(
            f"{what}: access is restricted; ask for it on the repository's page and pass token="
        ) from error
    except hf.LocalEntryNotFoundError as error:
        raise _cause_of(what, error) from error
    except (hf.RepositoryNotFoundError, hf.RevisionNotFoundError, hf.EntryNotFoundError) as error:
        kind = type(error).__name__.removeprefix("Remote").removesuffix("NotFoundError").lower()
        raise HubNotFoundError(
            f"{what}: the {kind} was not found, or is private; check the name, or pass token="
        ) from error
    except hf.HFValidationError as error:
        raise HubNotFoundError(f"{what} is no Hub id: {error}") from error
    except hf.HfHubHTTPError as error:
        raise _http_error(what, error) from error
    except OSError as error:
        raise HubError(
            f"{what}: the transfer failed ({_one_line(error)}); nothing was kept, try again"
        ) from error
    except Exception as error:  # httpx's own errors share no public root with OSError
        if type(error).__module__.startswith("httpx"):
            raise HubError(
                f"{what}: the connection failed ({_one_line(error)}); nothing was kept, try again"
            ) from error
        raise


def _cause_of(what: str, error: BaseException) -> HubError:
    """The reason why the Hub could not be asked, where the client says "not in the cache"."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error.__cause__, HfHubHTTPError):
        return _http_error(what, error.__cause__)
    return HubNotFoundError(
        f"{what} is not in the cache, and the Hub was not asked or not reached; "
        "connect, or drop local_files_only"
    )


def _http_error(what: str, error: Any) -> HubError:
    code = error.response.status_code
    if code in (401, 403):
        return HubAccessError(
            f"{what}: the Hub answered {code}, not allowed; "
            "run `hf auth login` or pass a token that may do this"
        )
    if code == 429:
        wait = error.response.headers.get("Retry-After")
        return HubRateLimitError(
            f"{what}: the Hub answered 429, too many requests; "
            f"wait {wait + ' s' if wait else 'a minute'}"
        )
    return HubError(f"{what}: the Hub answered {code} ({_one_line(error)}); try again later")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- to the Hub


PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of what is published as a picture."""
PUSHED = ("*.safetensors", *(f"*{suffix}" for suffix in PICTURES), "spec.toml", CARD_NAME)
"""What of a folder is uploaded."""


def push(
    folder: Path,
    repo_id: str,
    *,
    subfolder: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str = "Upload erasure",
) -> str:
    """Upload an adapter's folder as one commit, the repository made if it is not there.

    A card that this package did not write stays as it is.

    Args:
        folder: Weights, card, spec and images; anything else in it is not uploaded.
        repo_id: "owner/name".
        subfolder: Where to put it, for several adapters in one repository.
        private, revision, create_pr, token, commit_message: As in
            `huggingface_hub.HfApi.upload_folder`.

    Returns:
        The url of the commit, or of the pull request.

    Raises:
        HubError: The Hub did not take it; the subclasses say why.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with translate_hub_errors(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        card = f"{subfolder}/{CARD_NAME}" if subfolder else CARD_NAME
        keep_card = _has_own_card(api, repo_id, card, revision)
        info = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=subfolder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            allow_patterns=list(PUSHED),
            ignore_patterns=[CARD_NAME] if keep_card else None,
        )
    return info.pr_url or info.commit_url


def _has_own_card(api: Any, repo_id: str, path: str, revision: str | None) -> bool:
    if not api.file_exists(repo_id, path, revision=revision):
        return False
    return CARD_MARK not in Path(api.hf_hub_download(repo_id, path, revision=revision)).read_text(
        "utf-8", "replace"
    )
