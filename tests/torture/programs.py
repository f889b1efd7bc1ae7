"""The program as processes that start in milliseconds, each with a fault that waits for its moment."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
COUNT, FAIL, SIGNAL = range(3)  # as in faults.c
REPORT = "qqq1000s"

# Imports all of the program, then forks one process for each order, so that lazy imports touch no file later on.
SERVER = """
import ctypes, gc, importlib, json, os, pkgutil, signal, sys, weakref
import torch._dynamo
import optuna
import esp, espctl
for package in (esp, espctl):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
from espctl import cli
gc.collect()
gc.freeze()  # else each process would copy all of it to look at it
library = ctypes.CDLL(sys.argv[1]) if len(sys.argv) > 1 else None
for text in sys.stdin:
    order = json.loads(text)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    if not (pid := os.fork()):
        for number, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.chdir(order["cwd"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if order["fault"]:
            home, report, *numbers = order["fault"]
            assert library.torture_begin(home.encode(), report.encode(), ctypes.c_long(numbers[0]), *numbers[1:]) == 0
        open(order["begun"], "x").close()
        try:
            cli.main(order["arguments"])
        except SystemExit as end:
            code = end.code
        weakref.finalize._exitfunc()  # what the program does when it ends; of the libraries' own ends, a second in vain
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
"""


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th change of a file: nothing, an error number, or a signal; `stays` from there on."""

    kind: int = COUNT
    at: int = 0
    value: int = 0
    stays: bool = False


@dataclass(frozen=True)
class Done:
    """How a command ended: its code (the negative number of a signal), what it printed, and the changes it made.

    Attributes:
        changes: calls that change files below the home, and those of them that need space.
        fired: the call at which the fault happened; empty where it did not.
    """

    code: int
    out: str
    err: str
    seconds: float
    changes: tuple[int, int]
    fired: str


@dataclass(frozen=True)
class Running:
    """A command under way."""

    pid: int
    folder: Path
    begun: float
    server: Server

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)  # nobody has waited for it yet, so the number is still its own

    def wait(self) -> Done:
        code = int(self.server.ask({"wait": self.pid}))
        seconds = time.monotonic() - self.begun
        every, space, fired, what = struct.unpack(REPORT, (self.folder / "report").read_bytes())
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("out", "err"))
        at = what.split(b"\0")[0].decode(errors="replace") if fired else ""
        return Done(code, out, err, seconds, (every, space), at)


class Server:
    """Starts commands, each in the folder that holds its home, with the faults of `library` where there is one."""

    def __init__(self, process: subprocess.Popen[str], library: Path | None) -> None:
        self._process = process
        self.library = library

    def ask(self, order: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server has died"
        return answer

    def start(self, home: Path, words: str, fault: Fault | None = None) -> Running:
        """Start `espctl WORDS --home HOME`; returns when its first instruction is about to be executed."""
        folder = home.parent
        report, begun = folder / "report", folder / "begun"
        report.write_bytes(bytes(struct.calcsize(REPORT)))
        begun.unlink(missing_ok=True)
        armed = fault if fault or self.library is None else Fault()
        order = {
            "arguments": [*words.split(), "--home", str(home)],
            "out": str(folder / "out"),
            "err": str(folder / "err"),
            "begun": str(begun),
            "cwd": str(folder),
            "fault": armed and [str(home), str(report), armed.at, armed.kind, armed.value, int(armed.stays)],
        }
        pid = int(self.ask(order))
        while not begun.exists():
            time.sleep(0.0005)
        return Running(pid, folder, time.monotonic(), self)

    def run(self, home: Path, words: str, fault: Fault | None = None) -> Done:
        """Run a command to its end."""
        return self.start(home, words, fault).wait()


@contextmanager
def server(library: Path | None) -> Iterator[Server]:
    """A process that has imported everything."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ESPCTL_", "COLUMNS"))}
    environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if library is not None:
        environ["LD_PRELOAD"] = str(library)
    command = [sys.executable, "-c", SERVER, *([str(library)] if library else [])]
    pipe: dict[str, IO[Any] | int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environ, **pipe) as process:  # type: ignore[call-overload]
        yield Server(process, library)
        process.stdin.close()


def compiler() -> str | None:
    """The C compiler, where there is one and the system has preloading as it is meant here."""
    return shutil.which("cc") if sys.platform == "linux" else None


def build(folder: Path) -> Path:
    """Compile the library of faults into a folder."""
    target, found = folder / "faults.so", compiler()
    assert found is not None
    source = Path(__file__).with_name("faults.c")
    subprocess.run([found, "-O1", "-shared", "-fPIC", "-o", str(target), str(source), "-ldl"], check=True)
    return target
