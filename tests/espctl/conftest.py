"""A small project made by the program itself, and a way to start the program as a process that can be killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest

from esp.files import canonical, sha256
from espctl import cli

ROOT = Path(__file__).parents[2]
SETTINGS = """
[compute]
device = "cpu"
threads = 1
compile = "off"
[experts]
count = 2
epochs = 4
network = "convnet3,width=4"
[condense]
network = "convnet3,width=4"
[evaluate]
network = "convnet3,width=4"
seeds = 2
"""
ESP = (
    "condense --dataset digits --ipc 1 --method esp --set steps=6 --set real_batch=8 --set segment=2 --set start_max=2"
)

# Imports what takes seconds, then forks one process for each order; so that a test can afford to kill many.
SERVER = """
import json, os, signal, sys
import torch._dynamo
from esp.files import canonical, sha256
from espctl import __main__, cli
from espctl.services import condense, evaluate, experts
from espctl.services.tuning import tune
command_line, signals = cli.main, [signal.SIGINT, signal.SIGTERM]
def begin():  # what `espctl` does once its imports are done
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    command_line(order["arguments"])
cli.main = begin
for text in sys.stdin:
    order = json.loads(text)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # in the process that begins, until it has begun
    if not (pid := os.fork()):
        for number, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        __main__.main()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    print(pid, flush=True)
"""


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Project:
    """A project folder; called with words of a command line it runs the program in this process."""

    home: Path

    def __call__(self, *words: str, code: int = 0) -> Done:
        """Run a command and check its exit code; the first argument may hold several words."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = cli.run(self.arguments(*words))
        done = Done(found, out.getvalue(), err.getvalue())
        assert found == code, done
        return done

    def arguments(self, *words: str) -> list[str]:
        return [*words[0].split(), *words[1:], "--home", str(self.home)]

    def copy(self, to: Path) -> Project:
        """The same project elsewhere: nothing in it depends on where it lies."""
        shutil.copytree(self.home, to)
        return Project(to)

    def runs(self, method: str = "") -> list[Path]:
        return sorted(path for path in (self.home / "runs").glob(f"{method}*") if path.is_dir())


@dataclass(frozen=True)
class Process:
    """A running command."""

    pid: int
    out: Path
    err: Path
    server: subprocess.Popen[str]

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Done:
        """Its end; the code is the negative number of a signal that ended it."""
        return Done(int(ask(self.server, {"wait": self.pid})), self.out.read_text(), self.err.read_text())


def ask(server: subprocess.Popen[str], order: dict[str, Any]) -> str:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return server.stdout.readline()


@dataclass(frozen=True)
class Launcher:
    """Starts commands as processes of their own, without waiting for their imports."""

    server: subprocess.Popen[str]
    folder: Path

    def __call__(self, project: Project, *words: str) -> Process:
        number = len(list(self.folder.iterdir()))
        out, err = self.folder / f"{number}.out", self.folder / f"{number}.err"
        order = {"arguments": project.arguments(*words), "out": str(out), "err": str(err)}
        process = Process(int(ask(self.server, order)), out, err, self.server)
        while not err.exists():  # from here on the program itself is running
            time.sleep(0.001)
        return process


@pytest.fixture(scope="session", autouse=True)
def _hears_ctrl_c() -> None:
    """A shell starts its background jobs with Ctrl-C ignored; the tests may run in one, and so would all they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ESPCTL_") or name in ("COLUMNS", "NO_COLOR")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def launcher_server() -> Iterator[subprocess.Popen[str]]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe: dict[str, IO[Any] | int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, env=environ, **pipe) as server:  # type: ignore[call-overload]
        yield server
        server.stdin.close()


@pytest.fixture
def launch(launcher_server: subprocess.Popen[str], tmp_path: Path) -> Launcher:
    folder = tmp_path / "output of processes"
    folder.mkdir()
    return Launcher(launcher_server, folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Experts of digits and a finished esp run. Tests must not change it: `project` is a copy."""
    made = Project(tmp_path_factory.mktemp("finished"))
    (made.home / "espctl.toml").write_text(SETTINGS)
    made("experts build --dataset digits")
    made(ESP)
    return made


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    return finished.copy(tmp_path / "project")


def generate(home: Path, number: int, method: str = "esp", **asked: Any) -> str:
    """Write the folder of a finished run that was scored twice, as the program would have; returns its id."""
    options = {"beta": asked.pop("beta", 1e-5), "steps": 3} if method == "esp" else {}
    request = {
        "method": method, "method_options": options, "changed_options": {}, "parametrisation": "pixels",
        "parametrisation_options": {}, "dataset": "digits", "fingerprint": "f" * 64, "ipc": 1, "network": "convnet3",
        "seed": number, "experts": [], "preset": "paper", **asked,
    }  # fmt: skip
    plain = {name: value for name, value in request.items() if name not in ("preset", "changed_options")}
    key = sha256(canonical(plain))
    run = f"{method}-digits-{request['ipc']}-{number:05d}{key[:3]}"
    moment = (datetime(2026, 1, 31, 12, tzinfo=UTC) + timedelta(minutes=number)).isoformat()
    made = f"numbers of {run}".encode() * 10
    entry = {"name": "synthetic", "path": "synthetic.safetensors", "sha256": sha256(made), "bytes": len(made)}
    outcome = {
        "state": "finished", "started": moment, "finished": moment, "seconds": 12.5, "device": "cpu", "error": None,
        "peak_memory_bytes": 2**30, "stored_numbers": 2560, "budget_numbers": 2560, "artifacts": [entry],
    }  # fmt: skip
    source = {"version": "0.1.0", "git_commit": "c" * 40, "git_patch_sha256": None, "device": "cpu"}
    head = {"id": run, "key": key, "created": moment, "kind": "condense", "provenance": source}
    folder = home / "runs" / run
    (folder / "evaluations").mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps({**head, "request": request, "compute": {"device": "cpu"}}))
    (folder / "synthetic.safetensors").write_bytes(made)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "loss": {3 - n}}}\n' for n in range(1, 4)))
    for seed in range(2):
        accuracy = (10 + number % 80 + seed) / 100
        score = {"protocol": "dsa", "protocol_hash": "p" * 16, "network": "convnet3", "seed": seed, "created": moment}
        (folder / f"evaluations/dsa.s{seed}.json").write_text(json.dumps({**score, "accuracy": accuracy, "epochs": 3}))
    (folder / "outcome.json").write_text(json.dumps(outcome))
    return run


@pytest.fixture(scope="session")
def generated_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two runs of esp for each of two betas, one of random, and no data. Tests must not change it."""
    made = Project(tmp_path_factory.mktemp("generated"))
    for number, beta in enumerate((1e-5, 1e-5, 1e-3, 1e-3)):
        generate(made.home, number, seed=number % 2, beta=beta)
    generate(made.home, 4, "random", seed=0)
    made("db upgrade")
    return made


@pytest.fixture
def generated(generated_once: Project, tmp_path: Path) -> Project:
    return generated_once.copy(tmp_path / "generated")


@pytest.fixture
def wait_until() -> Any:
    """Wait for a condition, for at most a minute."""

    def wait(condition: Any, reason: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, reason
            time.sleep(0.002)

    return wait
