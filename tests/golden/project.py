"""Make `project-REVISION/`: run folders, experts and a bundle of a released format, kept to test later ones.

    python tests/golden/project.py

They are made by a copy of the program without its repository, so that no uncommitted change is stored with them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from esp import artifact, condensed
from esp.errors import EspError
from esp.files import file_sha256
from espctl import cli
from espctl.services import condense
from espctl.services.project import Project
from espctl.store.models import REVISIONS

ROOT = Path(__file__).parents[2]
SETTINGS = """[compute]
device = "cpu"
threads = 1
compile = "off"
[experts]
count = 1
epochs = 2
network = "convnet3,width=2"
[condense]
network = "convnet3,width=2"
[evaluate]
network = "convnet3,width=2"
seeds = 1
"""
ESP = {"steps": "3", "real_batch": "4", "segment": "2", "start_max": "0"}
FINISHED = "condense -d digits --ipc 1 -m esp " + " ".join(f"--set {name}={value}" for name, value in ESP.items())


def do(home: Path, words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = cli.run([*shlex.split(words), "--home", str(home)])
    if code:
        sys.exit(f"{words}: {code}")


def make(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "espctl.toml").write_text(SETTINGS)
    do(home, "experts build -d digits")
    do(home, FINISHED)
    [run] = (path.name for path in (home / "runs").glob("esp-*"))
    do(home, f"evaluate {run} --epochs 1 --no-baseline")
    do(home, f"compress {run} --bits 8")
    for words in (f"rename {run} golden", f"tag {run} first second", f"note {run} 'kept for ever'"):
        do(home, f"runs {words}")
    do(home, f"runs export {run} --with-experts -o {home}/bundle.tar.gz")
    interrupt(home)
    for passing in [*home.glob("espctl.db*"), *home.glob("**/lock"), *home.glob("**/.lock")]:
        passing.unlink()
    shutil.rmtree(home / "data")
    write_digests(home)


def interrupt(home: Path) -> None:
    """Leave a run after its second step, with a checkpoint."""
    project = Project.open({"home": home, "condense.method": "dm"})
    prepared = condense.prepare(project, condense.Request("digits", 1, {"steps": "4", "real_batch": "4"}))

    def stop(step: int, _: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with contextlib.suppress(EspError):  # "interrupted"
        condense.start(project, prepared, stop)


def write_digests(home: Path) -> None:
    """SHA-256 of every file, and of the numbers in every artifact."""
    found = {path.relative_to(home).as_posix(): file_sha256(path) for path in sorted(home.rglob("*")) if path.is_file()}
    numbers = {name: artifact.load(home / name).digest for name in found if name.endswith(".safetensors")}
    images = {
        name: artifact.tensor_digest(condensed.load(home / name).images()) for name in found if "/synthetic" in name
    }
    text = json.dumps({"files": found, "digests": numbers, "images": images}, indent=1, sort_keys=True)
    (home / "digests.json").write_text(text + "\n")


if __name__ == "__main__":
    golden = Path(__file__).with_name(f"project-{REVISIONS[-1]}")
    if golden.exists():
        sys.exit(f"{golden} exists: a golden project is never made anew")
    if "--here" in sys.argv:
        make(golden if len(sys.argv) < 3 else Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("esp", "espctl", "migrations", "tests/golden"):
                shutil.copytree(ROOT / name, Path(folder) / name)
            program = Path(folder) / "tests/golden/project.py"
            environ = {**os.environ, "PYTHONPATH": folder}
            subprocess.run([sys.executable, str(program), "--here", str(golden)], env=environ, cwd=folder, check=True)
