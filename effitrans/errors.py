"""Errors that are the user's to mend: one clear message that says what came, what was expected, what to do."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake in what the user passed. The command line prints it without a traceback and exits with 2."""


class CheckpointError(UsageError):
    """A model folder that cannot be loaded as it stands: damaged, incomplete, unsafe or too new."""


class VersionError(UsageError, ImportError):
    """An installed package outside the range of versions that effitrans works with."""


class GateMissed(Exception):
    """A quality or budget gate was not met: an outcome rather than an error (exit code 3)."""


class RunFailed(RuntimeError):
    """What was asked for could not be done although nothing was wrong with the input (exit code 1)."""


class TrainingDiverged(RunFailed):
    """The loss became NaN or infinite; the message names the step and the last good checkpoint."""


class WrongResult(RunFailed):
    """A compiled or exported model computes something else than the model it was made from."""


def unknown_name(what: str, received: str, valid: Iterable[str]) -> UsageError:
    """The error for a name that is not in a registry; names the nearest valid one.

    >>> str(unknown_name("scheme", "int8-dynamc", ["int8-dynamic", "nf4"]))
    "unknown scheme 'int8-dynamc': did you mean 'int8-dynamic'? Valid: int8-dynamic, nf4"
    """
    names = sorted(valid)
    near = difflib.get_close_matches(received, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {what} {received!r}: {hint}Valid: {', '.join(names) or 'none'}")
