"""Every error this package raises.

::

    ErasureError
    ├── ConceptSpecError (ValueError)        the request is wrong: concept, template, option, name
    ├── IllPosedError (ValueError)           no edit exists with these numbers
    │   └── EditTooLargeError                one does, and is larger than max_edit_size
    ├── UnknownFamilyError (ValueError)      a pipeline or text encoder without a record
    ├── AdapterFormatError (ValueError)      not an erasure adapter this version can read
    │   ├── AdapterIntegrityError            it was one, but its bytes changed or are not finite
    │   └── UnsafeFileError                  a pickle, or a path outside the folder
    ├── HubError (OSError)                   the Hub did not give or take a file
    │   ├── HubNotFoundError                 no such repository, revision or file, or it is private
    │   ├── HubAccessError                   a token is missing, or may not do this
    │   └── HubRateLimitError                too many requests
    ├── BaseModelMismatchError (ValueError)  made for other weights than the pipeline has
    ├── EvaluationError (ValueError)         a suite lacks a part, or nothing could be judged
    ├── NotEnoughMemoryError (MemoryError)   a solve would not fit; nothing was begun
    ├── AdapterStateError (RuntimeError)     not in the pipeline's present state
    │   ├── ErasureLockedError               a locked erasure would be switched off
    │   └── ErasureInactiveError             a required erasure is not in force; no image was made
    └── ErasureVerificationError (RuntimeError)
                                             measured on the live pipeline, the erasure fails

Every message says what is wrong, in which item, what was measured against what is allowed, and what
to do next. A failed operation changes nothing: neither the pipeline's bits nor the target folder.
"""

from __future__ import annotations


class ErasureError(Exception):
    """Root of every error of this package.

    A program that has nothing better to do catches this one and shows its message::

        try:
            pipe.load_erasure_adapter("no-star")
        except ErasureError as error:
            sys.exit(f"not erased: {error}")
    """


class ConceptSpecError(ErasureError, ValueError):
    """The request itself is wrong; the message names the concept, template or option and the rule.

    A template needs one slot for the concept::

        Concept("star", templates=("a photo",))       # raises
        Concept("star", templates=("a photo of {}",))  # does not
    """


class IllPosedError(ErasureError, ValueError):
    """No acceptable edit exists for these constraints; the message has the numbers.

    Each prompt that must meet its anchor exactly takes one dimension of a layer's input, so a rank
    below their number cannot do::

        erase(pipe, spec, max_rank=1)  # raises with two exact constraints; allow at least two
    """


class EditTooLargeError(IllPosedError):
    """An edit is larger than `max_edit_size` allows, against the weight that it changes.

    `words` are those whose gates take most of it; without them the others' are small enough. Empty
    where no gates are edited.
    """

    def __init__(self, message: str, words: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.words = words


class UnknownFamilyError(ErasureError, ValueError):
    """No record describes this text encoder, or it does not explain what the pipeline returns.

    A record can be proposed, read, and registered (docs/families.md)::

        from diffusers_erasepro.families.pipelines import register
        from diffusers_erasepro.families.probe import propose_records

        proposal = propose_records(pipe)
        print(proposal)
        register(proposal.pipeline, *proposal.encoders)
    """


class AdapterFormatError(ErasureError, ValueError):
    """The file is not an erasure adapter that this version can read.

    It may be a LoRA, of another version, or not there::

        ErasureAdapter.from_pretrained("no-star")  # raises where there is no such file or folder
    """


class AdapterIntegrityError(AdapterFormatError):
    """The file's bytes are not those its author wrote, or contain values that are not finite.

    Download it again; where it stays so, ask its author.
    """


class UnsafeFileError(AdapterFormatError):
    """A pickle, or a path that leads out of its folder.

    A pickle can run code when it is loaded, so none is. Convert it to safetensors where it is safe
    to do so.
    """


class HubError(ErasureError, OSError):
    """The Hub did not give or take a file; nothing was kept.

    Where the connection failed, try again; offline, use what is cached::

        pipe.load_erasure_adapter("owner/no-star", local_files_only=True)
    """


class HubNotFoundError(HubError):
    """No such repository, revision or file, or it is private.

    The Hub does not tell a private repository from a missing one::

        pipe.load_erasure_adapter("owner/no-star", revision="v1", token=token)
    """


class HubAccessError(HubError):
    """A token is missing, or may not do this.

    Ask for access on the repository's page, then pass `token=`, or log in with `hf auth login`.
    """


class HubRateLimitError(HubError):
    """Too many requests; the message says how long to wait."""


class BaseModelMismatchError(ErasureError, ValueError):
    """The adapter was made for other weights than the pipeline has.

    Load it on its base model, or solve its spec again for this pipeline::

        pipe.load_erasure_adapter("no-star", allow_base_mismatch=True)
    """


class EvaluationError(ErasureError, ValueError):
    """What is to be measured is not there; no number is made of nothing."""


class NotEnoughMemoryError(ErasureError, MemoryError):
    """A solve takes more memory than there is; the message has both numbers.

    Nothing was begun. Fewer concepts at a time take less, and so does another metric::

        erase(pipe, spec, metric="identity")
    """


class AdapterStateError(ErasureError, RuntimeError):
    """The operation does not fit the pipeline's present state.

    For example, an adapter is loaded twice under one name, or is not loaded at all::

        pipe.set_erasure_adapters(["no-star"])  # raises before load_erasure_adapter
    """


class ErasureLockedError(AdapterStateError):
    """The operation would switch off an erasure that is locked.

    Whoever locked it has the token::

        pipe.load_erasure_adapter("no-star", locked=True, lock_token=token)
        pipe.disable_erasure()  # raises
        pipe.unlock_erasure(token)
        pipe.disable_erasure()  # does not
    """


class ErasureInactiveError(AdapterStateError):
    """No image was made: an erasure that is required, or that this pipeline had, is not in force.

    Load it again, or say that you mean to go on without::

        pipe.unload_erasure_adapters()
    """


class ErasureVerificationError(ErasureError, RuntimeError):
    """An active erasure, measured on the live pipeline, does not meet its threshold.

    A LoRA that was loaded afterwards may have changed the text encoder; solve again on top of it::

        pipe.load_lora_weights("style")
        pipe.refit_erasure()
        pipe.verify_erasure(raise_on_fail=True)
    """
