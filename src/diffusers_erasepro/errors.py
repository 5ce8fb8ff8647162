"""Every error this package raises.

::

    ErasureError
    ├── ConceptSpecError (ValueError)        the request itself is wrong: concept, template, option, name
    ├── IllPosedError (ValueError)           no edit with these numbers: contradictory, too many, not finite, too large
    ├── UnknownFamilyError (ValueError)      a pipeline or text encoder without a record
    ├── AdapterFormatError (ValueError)      the file is not an erasure adapter this version can read
    │   ├── AdapterIntegrityError            it was one, but its bytes changed or are not finite
    │   └── UnsafeFileError                  a pickle, or a path outside the folder
    ├── HubError (OSError)                   the Hub did not give or take a file: connection, cut off, server
    │   ├── HubNotFoundError                 no such repository, revision or file, or it is private
    │   ├── HubAccessError                   a token is missing, or may not do this
    │   └── HubRateLimitError                too many requests; the message says how long to wait
    ├── BaseModelMismatchError (ValueError)  made for other weights than the pipeline holds
    ├── EvaluationError (ValueError)         a suite that lacks a part, results that do not fit, nothing judged
    ├── AdapterStateError (RuntimeError)     not now: name in use, unknown name, weights that cannot be edited
    └── ErasureVerificationError (RuntimeError)  measured on the live pipeline, the erasure does not hold

A failed operation changes nothing: neither the pipeline's bits nor the target folder.
"""

from __future__ import annotations


class ErasureError(Exception):
    """Root of every error of this package."""


class ConceptSpecError(ErasureError, ValueError):
    """The request itself is wrong; the message names the concept, template or option and the rule."""


class IllPosedError(ErasureError, ValueError):
    """No acceptable edit exists for these constraints; the message has the numbers."""


class UnknownFamilyError(ErasureError, ValueError):
    """No record describes this pipeline or text encoder."""


class AdapterFormatError(ErasureError, ValueError):
    """The file is not an erasure adapter that this version can read."""


class AdapterIntegrityError(AdapterFormatError):
    """The file's bytes are not those its author wrote, or hold values that are not finite."""


class UnsafeFileError(AdapterFormatError):
    """A pickle, or a path that leads out of its folder."""


class HubError(ErasureError, OSError):
    """The Hub did not give or take a file; nothing was kept."""


class HubNotFoundError(HubError):
    """No such repository, revision or file, or it is private."""


class HubAccessError(HubError):
    """A token is missing, or may not do this."""


class HubRateLimitError(HubError):
    """Too many requests; the message says how long to wait."""


class BaseModelMismatchError(ErasureError, ValueError):
    """The adapter was made for other weights than the pipeline holds."""


class EvaluationError(ErasureError, ValueError):
    """What shall be measured is not there; no number is made of nothing."""


class AdapterStateError(ErasureError, RuntimeError):
    """The operation does not fit the pipeline's present state."""


class ErasureVerificationError(ErasureError, RuntimeError):
    """An active erasure, measured on the live pipeline, does not hold."""
