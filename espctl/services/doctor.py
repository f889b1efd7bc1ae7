"""Looking for what is missing or broken: the installation, the machine, and the project. Nothing is changed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esp.errors import EspError
from espctl.errors import translate
from espctl.jobs import locks
from espctl.services.project import Project

State = Literal["ok", "warn", "fail"]
PYTHON = (3, 11)
TORCH = (2, 10)
LITTLE_DISK, NO_DISK = 5e9, 2e8
COMPILE_SECONDS = 180
EXTRAS = {
    "matplotlib": "figures",
    "optuna": "tuning",
    "scipy": "svhn",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
}
"""Package -> the extra of our distribution that brings it."""

_COMPILE = """
import torch
step = torch.compile(lambda x: (x.sin() + x * x).sum())
device = {device!r}
print(float(step(torch.ones(8, device=device))))
"""


@dataclass(frozen=True)
class Row:
    """What was found about one thing, and what to do about it (empty when nothing need be done)."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(project: Project, fast: bool = False) -> Iterator[Row]:
    """Yield a row for each thing that was looked at; one that fails to be looked at becomes a row as well.

    Args:
        project: its settings; its database is not opened for writing.
        fast: leaves out the trial compilation, which takes seconds.
    """
    looks: list[tuple[str, Callable[[Project], Iterator[Row]]]] = [
        ("python", _python),
        ("torch", _torch),
        ("torchvision", _torchvision),
        ("device", _device),
        ("compile", _skipped if fast else _compile),
        ("extras", _extras),
        ("home", _home),
        ("disk", _disk),
        ("database", _database),
        ("data", _data),
        ("runs", _runs),
    ]
    for name, look in looks:
        try:
            yield from look(project)
        except Exception as error:
            failure = translate(error)
            yield Row(name, "fail", failure.message, failure.hint or "")


def _python(_: Project) -> Iterator[Row]:
    found = f"{sys.version.split()[0]}, {shlex.quote(sys.executable)}"
    if sys.version_info < PYTHON:
        yield Row("python", "fail", found, f"install Python {'.'.join(map(str, PYTHON))} or newer")
    else:
        yield Row("python", "ok", found)


def _torch(_: Project) -> Iterator[Row]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Row("torch", "fail", f"cannot be imported: {error}", "install it again: see pytorch.org for this machine")
        return
    wanted = ".".join(map(str, TORCH))
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < TORCH:
        yield Row("torch", "fail", torch.__version__, f"upgrade it: pip install 'torch>={wanted}'")
    else:
        yield Row("torch", "ok", torch.__version__)


def _torchvision(_: Project) -> Iterator[Row]:
    from esp.vision import torchvision

    try:
        yield Row("torchvision", "ok", str(torchvision().__version__))
    except EspError as error:
        yield Row("torchvision", "warn", error.message, error.hint or "")


def _device(project: Project) -> Iterator[Row]:
    import torch

    cores = len(os.sched_getaffinity(0))
    wanted = project.settings.compute.device
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Row(
                "device", "ok", f"cuda:{index}, {facts.name}, {facts.total_memory / 1e9:.0f} GB; {cores} CPU cores"
            )
    elif wanted.startswith("cuda"):
        yield Row(
            "device", "fail", f"the settings want {wanted}, and torch sees no GPU", "use --device auto, or mend it"
        )
    elif Path("/proc/driver/nvidia").exists():
        yield Row("device", "warn", "there is a GPU that torch cannot use", "install a torch that was built for CUDA")
    else:
        yield Row("device", "ok", f"cpu, {cores} cores, no GPU")


def _skipped(_: Project) -> Iterator[Row]:
    yield Row("compile", "ok", "not tried (--fast)")


def _compile(project: Project) -> Iterator[Row]:
    """Compile a tiny program in another process, which can hang or die without harm."""
    import torch

    device = "cuda" if torch.cuda.is_available() and project.settings.compute.device != "cpu" else "cpu"
    state: State = "fail" if project.settings.compute.compile == "on" else "warn"
    remedy = (
        "install a C++ compiler (g++), or set compute.compile to off"
        if device == "cpu"
        else ("install the Triton that belongs to this torch, or set compute.compile to off")
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", _COMPILE.format(device=device)],
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Row("compile", state, f"a tiny program took more than {COMPILE_SECONDS} s", "set compute.compile to off")
        return
    if done.returncode == 0:
        yield Row("compile", "ok", f"torch.compile works on {device}")
    else:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        yield Row("compile", state, f"torch.compile fails on {device}: {reason.strip():.200}", remedy)


def _extras(_: Project) -> Iterator[Row]:
    there = {package: importlib.util.find_spec(package) is not None for package in EXTRAS}
    found = [f"{package} {_version(package)}" for package, present in there.items() if present]
    missing = [package for package, present in there.items() if not present]
    text = ", ".join(found) or "none"
    remedy = f"for {missing[0]}: pip install 'esp-condense[{EXTRAS[missing[0]]}]'" if missing else ""
    yield Row("extras", "ok", f"{text}; not there: {', '.join(missing)}" if missing else text, remedy)


def _version(package: str) -> str:
    for distribution in (package, f"{package}-skinny"):  # mlflow comes as either
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return ""


def _home(project: Project) -> Iterator[Row]:
    there = _existing(project.home)
    try:
        with tempfile.TemporaryFile(dir=there):
            yield Row("home", "ok", f"{project.home}{'' if there == project.home else ' (made when first used)'}")
    except OSError as error:
        failure = translate(error)
        yield Row("home", "fail", f"{there} cannot be written: {failure.message}", "choose another with --home FOLDER")


def _disk(project: Project) -> Iterator[Row]:
    there = _existing(project.home)
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free at {there}"
    state: State = "fail" if free < NO_DISK else "warn" if free < LITTLE_DISK else "ok"
    remedy = "" if state == "ok" else "free some space (espctl experts rm), or choose another --home"
    yield Row("disk", state, found, remedy)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _database(project: Project) -> Iterator[Row]:
    from espctl.services import db

    current = db.current(project)
    if current.revision is None:
        yield Row("database", "ok", f"none yet at {current.database}; the first command that needs it makes it")
        return
    report = db.check(project)
    if current.revision != current.head:
        older = report.problems[-1] if report.problems else f"schema {current.revision}"
        yield Row("database", "fail", older.partition(";")[0], "run: espctl db upgrade")
    elif report.problems:
        for problem in report.problems:
            text, _, remedy = problem.partition("; ")
            yield Row("database", "fail", text, remedy or "run: espctl db check")
    else:
        yield Row("database", "ok", f"schema {current.revision}, sound, {current.database}")


def _data(project: Project) -> Iterator[Row]:
    from esp.data import store

    entries = store.entries(project.paths.data)
    whole = [entry.name for entry in entries if not entry.damage]
    for entry in entries:
        if entry.damage:
            remedy = f"run: espctl data fetch {shlex.quote(entry.name)}, or remove {shlex.quote(str(entry.path))}"
            yield Row("data", "fail", entry.damage, remedy)
    if whole:
        yield Row("data", "ok", f"{', '.join(whole)} (headers; every byte: espctl data check)")
    elif not entries:
        yield Row("data", "ok", "none yet", "run: espctl data fetch NAME, or use digits, which needs no download")


def _runs(project: Project) -> Iterator[Row]:
    from espctl.store import folder as folders

    counts = {"finished": 0, "running": 0}
    for path in sorted(project.paths.runs.glob("*/request.json")):
        with locks.glance(path.parent) as free:
            try:
                run = folders.read(path.parent, project.home).run
            except EspError as error:
                yield Row("runs", "warn", error.message, error.hint or "")
                continue
        if run.state == "finished":
            counts["finished"] += 1
        elif not free:
            counts["running"] += 1
        else:
            yield Row("runs", "warn", f"{run.id} is {run.state}", f"go on: espctl condense --resume {run.id}")
    yield Row("runs", "ok", ", ".join(f"{count} {state}" for state, count in counts.items()))
