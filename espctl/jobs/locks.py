"""Locks that die with their process: a run folder for one alone, and files that only one process makes.

Both are held on a file of their own (`lock` in a run folder, `.lock` beside files that are claimed), which stays: who
removed it could leave two processes with a lock on different files of that name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from esp.files import sha256
from espctl.errors import RunError
from espctl.jobs import signals

CLAIMS = ".lock"
GLANCE = 1.0
"""Seconds in which whoever looks at a folder for a moment, to tidy up, has let go of it."""
_POLL = 0.05

OnWait = Callable[[str], None]


def silent(_: str) -> None:
    """Tell nobody that this process waits for another."""


@contextlib.contextmanager
def hold(folder: Path, shared: bool = False, wait: float | None = GLANCE, on_wait: OnWait = silent) -> Iterator[None]:
    """Hold a run's folder: alone, or with others that only add to it.

    Args:
        folder: one that exists.
        shared: others may hold it in this way too; nobody may work on the run, remove it or move it.
        wait: seconds to wait for who has it; None for as long as it takes.
        on_wait: called once, with the folder's name, when there is somebody to wait for.

    Raises:
        RunError: another process has it, or has removed it.
    """
    try:
        file = (folder / "lock").open("a")
    except FileNotFoundError as error:
        raise _gone(folder) from error
    with file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        if not _wait(lambda: fcntl.flock(file, kind | fcntl.LOCK_NB), wait, folder.name, on_wait):
            raise RunError(f"another process is working on {folder.name}", "wait for it, or stop it first")
        if not _is_still(file, folder / "lock"):
            raise _gone(folder)
        yield


@contextlib.contextmanager
def glance(folder: Path) -> Iterator[bool]:
    """Whether nobody works on a run; if so, nobody begins to within the block: what is read there holds together.

    A run whose state is read before or after such a look may have ended, or begun, in between. That holds for every run
    that was begun here; a folder of someone else may have no lock yet.
    """
    with contextlib.ExitStack() as stack:
        free = True
        try:
            fcntl.flock(stack.enter_context((folder / "lock").open()), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            free = False
        yield free


@contextlib.contextmanager
def claim(paths: Sequence[Path], on_wait: OnWait = silent) -> Iterator[None]:
    """Be the only one who makes these files; wait for whoever makes one of them now.

    A file may be there when the block begins. Claims are taken in one order by all, so that no two wait for each other.
    """
    with contextlib.ExitStack() as stack:
        files: dict[Path, IO[str]] = {}
        for path in sorted(set(paths)):
            if path.parent not in files:
                path.parent.mkdir(parents=True, exist_ok=True)
                files[path.parent] = stack.enter_context((path.parent / CLAIMS).open("a"))
            _claim_one(files[path.parent], path, on_wait)
        yield


def require_unclaimed(folder: Path) -> None:
    """Check that nobody makes a file in a folder now.

    Raises:
        RunError: somebody does.
    """
    if not (folder / CLAIMS).exists():
        return
    with (folder / CLAIMS).open("a") as file:
        if not _wait(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB), 0.0, folder.name, silent):
            raise RunError(f"another process is working in {folder.name}", "wait for it, or stop it first")


def _claim_one(file: IO[str], path: Path, on_wait: OnWait) -> None:
    """One byte of the lock file stands for each name: claims of other names do not wait."""
    place = int(sha256(path.name)[:12], 16)
    _wait(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place), None, path.name, on_wait)


def _wait(lock: Callable[[], None], seconds: float | None, name: str, on_wait: OnWait) -> bool:
    """Try to lock until it succeeds or time is up; Ctrl-C ends the waiting."""
    deadline, told = None if seconds is None else time.monotonic() + seconds, False
    while True:
        try:
            lock()
            return True
        except (BlockingIOError, PermissionError):  # the latter is what POSIX also allows for a lock that is taken
            if deadline is not None and time.monotonic() >= deadline:
                return False
        if not told and seconds is None:
            on_wait(name)
            told = True
        signals.check()
        time.sleep(_POLL)


def _is_still(file: IO[str], path: Path) -> bool:
    """Whether the file that was opened is the one of that path: a folder may have been moved away meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _gone(folder: Path) -> RunError:
    return RunError(f"the run {folder.name} was removed by another process", "espctl runs restore brings it back")
