"""What the driver adds to the library's errors, and one sentence for every failure that is not ours.

```
esp.errors.EspError
├── UsageError       a command line that cannot be understood            exit code 2
├── SettingsError    a setting that is unknown or has an unusable value
├── StoreError       a database that cannot be opened, read or written
│   └── SchemaError  a database of another schema revision
├── RunError         a run that is unknown, ambiguous, or in the wrong state
├── PausedError      a full disk or a lost device stopped the work, which can go on
├── ExpressionError  a filter or an SQL statement that cannot be understood, and where
└── Interrupted      the user stopped the work                           exit code 130
```
"""

from __future__ import annotations

import errno
import sys

from esp.errors import EspError, OutOfMemoryError
from esp.registry import own_packages

_SPACE = "free some disk space or choose another folder with --home, then run the same command again"
_ACCESS = "check the owner and the mode of the file, or choose another folder with --home"
_OPENING = "check that the disk is not full, and the owner and the mode of the file and of its folder"
_BUG = "this is a defect of espctl: run the command again with ESPCTL_DEBUG=1 and report the traceback"
_MEMORY = "lower compute.chunk (images per pass), the batch size or --jobs, or close other programs"
_DEVICE = "look at it with nvidia-smi, then run the same command again"
_OWN = "this module is not of espctl: correct it; with ESPCTL_DEBUG=1 the command prints the traceback"
_EXTRAS = {"optuna": "tune", "plotly": "tune"}  # package -> what it is installed with
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
REBUILD = "make it anew from the run folders: espctl db rebuild"
_OS_REASONS = {
    errno.ENOSPC: ("the disk is full", _SPACE),
    errno.EDQUOT: ("the disk quota is used up", _SPACE),
    errno.EFBIG: ("the file would exceed the largest size allowed here", "raise the limit: ulimit -f unlimited"),
    errno.EIO: ("the disk cannot be read or written", "check the disk, then run the same command again"),
    errno.EROFS: ("the file system is read-only", "choose a writable folder with --home"),
    errno.EACCES: ("permission denied", _ACCESS),
    errno.EPERM: ("operation not permitted", _ACCESS),
    errno.EMFILE: ("too many open files", "raise the limit: ulimit -n 4096"),
}
_DATABASE_REASONS = (
    ("database is locked", "the database is locked by another process", "wait until it ends, then try again"),
    ("no such table", "the database lacks a table", REBUILD),
    ("no such column", "the database lacks a column", REBUILD),
    ("disk is full", "the disk is full, the database cannot be written", _SPACE),
    ("disk I/O error", "the disk with the database cannot be used, it may be full", _SPACE),
    ("readonly database", "the database is read-only", _ACCESS),
    ("unable to open", "the database file cannot be opened", _OPENING),
    ("not a database", "the database file is not an SQLite database", REBUILD),
    ("malformed", "the database file is damaged", REBUILD),
    ("decode to UTF-8", "the database file is damaged", REBUILD),
)


class UsageError(EspError):
    """A command line that cannot be understood."""


class SettingsError(EspError):
    """A setting that is unknown, or whose value cannot be used."""


class StoreError(EspError):
    """A database that cannot be opened, read or written."""


class SchemaError(StoreError):
    """A database whose schema is older or newer than this program."""


class RunError(EspError):
    """A run that is unknown, ambiguous, or not in the state that the command needs."""


class PausedError(EspError):
    """Something outside of the program stopped the work, which can go on from what was saved last."""


class ExpressionError(EspError):
    """A filter or an SQL statement that cannot be understood.

    Args:
        message, hint: as of every error.
        text: what was typed.
        place: index of the letter where it stops making sense; the end of `text` is allowed.
    """

    def __init__(self, message: str, hint: str, text: str, place: int) -> None:
        super().__init__(message, hint)
        self.text = text
        self.place = min(max(0, place), len(text))


class Interrupted(EspError):
    """The user stopped the work."""

    def __init__(self, hint: str = "run the same command again to go on") -> None:
        super().__init__("interrupted", hint)


def exit_code(error: EspError) -> int:
    """The exit code of the process that ends with `error`: 2 for usage, 130 for an interrupt, else 1."""
    if isinstance(error, UsageError):
        return 2
    return 130 if isinstance(error, Interrupted) else 1


def translate(error: BaseException) -> EspError:
    """The sentence and remedy for any exception; an `EspError` is returned as it is."""
    if isinstance(error, EspError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted()
    if isinstance(error, OSError):
        return _from_os(error)
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return EspError("a path or a name holds a null character", "leave it out")
    if isinstance(error, ModuleNotFoundError):
        return _from_import(error)
    if _is_a(error, "sqlalchemy.exc", "SQLAlchemyError") or _is_a(error, "sqlite3", "Error"):
        return _from_database(error)
    if _is_a(error, "optuna.exceptions", "StorageInternalError") and error.__cause__ is not None:
        return translate(error.__cause__)
    if _ran_out_of_memory(error):
        return OutOfMemoryError("out of memory", _MEMORY)
    if _is_a(error, "torch", "AcceleratorError") or (isinstance(error, RuntimeError) and "CUDA" in str(error)):
        return PausedError(f"the device failed: {_first_line(error)}", _DEVICE)
    if own := _own_line(error):
        return EspError(f"{own} raised {type(error).__name__}: {_first_line(error)}", _OWN)
    return EspError(f"unexpected {type(error).__name__}: {_first_line(error)}", _BUG)


def _own_line(error: BaseException) -> str:
    """The line of the user's own method, network or the like in which an error arose; empty when it was not in one."""
    found, step = "", error.__traceback__
    while step is not None:
        package = str(step.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if package in own_packages:
            found = f"line {step.tb_lineno} of {step.tb_frame.f_code.co_filename}"
        step = step.tb_next
    return found


def may_pass(error: EspError) -> bool:
    """Whether work that stopped with this error can go on once its cause is gone: a full disk, a lost device."""
    return isinstance(error, PausedError) or (isinstance(error, StoreError) and error.hint == _SPACE)


def cause_of(hint: str) -> str:
    """What a hint says about removing the cause, without how to go on, for a caller that knows the line for that."""
    return hint.partition(", then run the same")[0].partition(" or choose another folder")[0]


def _ran_out_of_memory(error: BaseException) -> bool:
    memory = sys.modules.get("esp.memory")  # which imports torch; without that nothing but Python can run out
    return isinstance(error, MemoryError) or bool(memory and memory.is_out_of_memory(error))


def _from_os(error: OSError) -> EspError:
    reason, hint = _OS_REASONS.get(
        error.errno or 0, (error.strerror or _first_line(error), "check the path and try again")
    )
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    kind = PausedError if error.errno in _PASSING else EspError
    return kind(": ".join([*files[:1], reason[:1].lower() + reason[1:]]), hint)


def _from_import(error: ModuleNotFoundError) -> EspError:
    package = (error.name or "").partition(".")[0]
    if package in ("", "esp", "espctl"):
        return EspError(
            f"a part of espctl is missing: {_first_line(error)}", "install it again: pip install esp-condense"
        )
    wanted = f"'esp-condense[{_EXTRAS[package]}]'" if package in _EXTRAS else package
    return EspError(f"the package {package!r} is not installed", f"run: pip install {wanted}")


def _from_database(error: BaseException) -> EspError:
    text = _first_line(getattr(error, "orig", None) or error)
    for part, sentence, hint in _DATABASE_REASONS:
        if part in text:
            return StoreError(sentence, hint)
    return StoreError(f"the database failed: {text}", "run: espctl db check")


def _is_a(error: BaseException, module: str, name: str) -> bool:
    """Whether `error` is an instance of `module.name`, without importing a module that nobody has imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "") or "no message"
