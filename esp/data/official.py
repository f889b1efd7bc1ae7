"""What the sets that torchvision reads have in common: where their files lie, and one error for all that goes wrong."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esp.errors import DataError

_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_STALLED_SECONDS = 60.0


@contextmanager
def obtaining(name: str, root: Path, files: str, download: bool) -> Iterator[None]:
    """Turn what a loader raises into a `DataError` that says where the files belong.

    Args:
        name: of the data set.
        root: the folder that the loader looks in.
        files: the file or folder that belongs there, for the remedy.
        download: whether the loader may fetch the files; a connection that stalls for a minute fails.

    Raises:
        DataError: the files are missing, do not match their checksums, cannot be downloaded or cannot be read.
    """
    remedy = f"run: espctl data fetch {name} (it needs a network), or put {files} into {root}"
    before = socket.getdefaulttimeout()
    try:
        if download:
            socket.setdefaulttimeout(_STALLED_SECONDS)
        yield
    except ImportError as error:
        raise DataError(f"reading {name} needs the package {error.name}", f"run: pip install {error.name}") from error
    except OSError as error:
        if error.errno in _LOCAL:
            raise
        raise DataError(f"{name} cannot be fetched ({_first_line(error)})", f"put {files} into {root}") from error
    except (RuntimeError, ValueError, AssertionError, EOFError, KeyError, IndexError, TypeError) as error:
        if download:
            message = f"{name} cannot be fetched or read ({_first_line(error)})"
            raise DataError(message, f"put {files} into {root}") from error
        message = f"{name} is not in {root}, or its files are not the official ones"
        raise DataError(message, remedy) from error
    finally:
        socket.setdefaulttimeout(before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":") if lines else type(error).__name__
