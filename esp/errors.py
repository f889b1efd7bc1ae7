"""Every error that the library raises on purpose: one sentence, and a remedy.

```
EspError
├── UnknownNameError     a data set, method, network, protocol or option that does not exist
├── InputError           a value that cannot be used (range, type, combination)
├── DataError            a data set that cannot be read or makes no sense
├── BudgetError          a synthetic set that does not fit its storage budget
├── MismatchError        files that do not belong together (network, data set, pixel space)
├── ArtifactError        a file that is missing, truncated, altered, or of another format
├── OutOfMemoryError     work that does not fit into memory, even one image at a time
└── DivergedError        a loss or parameter that is no longer finite, or has exploded
```
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class EspError(Exception):
    """Base of all expected failures.

    Args:
        message: what is wrong, one sentence.
        hint: what to do about it, one sentence; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # children have arguments of their own, and errors travel between processes
        return _restore, (type(self), self.message, self.hint)


def _restore(kind: type[EspError], message: str, hint: str) -> EspError:
    error = kind.__new__(kind)
    EspError.__init__(error, message, hint)
    return error


class UnknownNameError(EspError):
    """A name that is in none of the tables; the hint names the closest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        super().__init__(f"unknown {kind} {name!r}", closest_hint(name, choices))


class InputError(EspError):
    """A value out of range, of the wrong type, or in a combination that cannot work."""


class DataError(EspError):
    """A data set that cannot be read, or whose content makes no sense."""


class BudgetError(EspError):
    """A synthetic set that stores more numbers than its budget, or cannot store one item."""


class MismatchError(EspError):
    """Files that do not belong together."""


class ArtifactError(EspError):
    """A file that is missing, truncated, altered, or of another format."""


class OutOfMemoryError(EspError):
    """Work that does not fit into memory, even one image at a time."""


class DivergedError(EspError):
    """A loss, gradient or parameter that is not finite any more, or has exploded.

    Attributes:
        state: the last state that was looked at and found sound, when whoever raised it keeps one.
    """

    state: Mapping[str, Any] | None = None


def closest_hint(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for the nearest of `known`, or the list of what there is."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(choices)}" if choices else "there are none yet"
