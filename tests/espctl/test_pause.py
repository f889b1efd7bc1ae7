"""A full disk or a lost device pauses a run, and too little memory makes its chunks smaller."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from esp import artifact
from espctl.errors import PausedError, translate

NETWORK = '''
"""A network that needs memory for every image, on a device that can be lost."""
from pathlib import Path
import torch
from esp.networks.convnet import ConvNet

HERE = Path(__file__).parent

class Fragile(ConvNet):
    def forward(self, x):
        real = x.device.type != "meta"
        if real and (HERE / "lost").exists():
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\\nCUDA kernel errors might ...")
        if real and (HERE / "room").exists() and len(x) > int((HERE / "room").read_text()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)

def network(shape, classes):
    return Fragile(shape, classes, 3, 4, "instance")
'''
RUN = (
    "condense --dataset digits --ipc 1 --method dm --network {0.name}:network --set steps=6 --set real_batch=8 --seed 2"
)


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the network's module, which has the folder's name."""
    folder = tmp_path / f"own_{tmp_path.name}"
    folder.mkdir()
    (folder / f"{folder.name}.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(folder)
    return folder


def only(project: Any, known: list[Path]) -> Path:
    [run] = [path for path in project.runs("dm") if path not in known]
    found: Path = run
    return found


def test_a_lost_device_pauses_a_run(project: Any, fragile: Path) -> None:
    known = project.runs("dm")
    (fragile / "lost").touch()
    done = project(RUN.format(fragile), code=1)
    run = only(project, known)
    assert done.err.splitlines()[-2:] == [
        "error: the device failed: CUDA error: unspecified launch failure",
        f"hint: look at it with nvidia-smi, then go on with: espctl condense --resume {run.name}",
    ]
    assert artifact.read_meta(run / "checkpoint.safetensors")[0]["step"] == 0
    [shown] = project("runs ls", f"id={run.name}", "--json").json
    assert shown["state"] == "interrupted"
    (fragile / "lost").unlink()
    assert project("condense --resume", run.name, "--json").json["state"] == "finished"


def test_a_run_that_is_short_of_memory_has_smaller_chunks_to_its_end(project: Any, fragile: Path) -> None:
    known = project.runs("dm")
    (fragile / "room").write_text("5")
    project(RUN.format(fragile), "--chunk", "16")
    run = only(project, known)
    assert json.loads((run / "outcome.json").read_text())["chunk"] == 4
    (fragile / "room").unlink()
    project(RUN.format(fragile), "--chunk", "4", "--again")
    other = only(project, [*known, run])
    assert json.loads((other / "outcome.json").read_text())["chunk"] == 4
    tensors = [artifact.load(path / "synthetic.safetensors").tensors for path in (run, other)]
    assert all(tensors[0][name].equal(tensors[1][name]) for name in tensors[0])


def test_a_run_that_does_not_fit_at_all_says_what_to_lower(project: Any, fragile: Path) -> None:
    known = project.runs("dm")
    (fragile / "room").write_text("0")
    done = project(RUN.format(fragile), "--chunk", "16", code=1)
    run = only(project, known)
    error, hint = done.err.splitlines()[-2:]
    assert error == "error: out of memory in step 1, even one image at a time"
    assert "lower --ipc" in hint
    assert hint.endswith(f"go on with: espctl condense --resume {run.name}")
    assert artifact.read_meta(run / "checkpoint.safetensors")[0]["chunk"] == 16, "that of the last step that fitted"
    (fragile / "room").write_text("9")
    project("condense --resume", run.name)
    assert json.loads((run / "outcome.json").read_text())["chunk"] == 8


def test_a_full_disk_pauses_a_run(project: Any, launch: Any, wait_until: Any) -> None:
    """No file may grow beyond 4000 bytes from some moment on: no checkpoint, no database."""
    command = "condense --dataset digits --ipc 1 --method dm --set steps=40 --set real_batch=8 --seed 3"
    known = project.runs("dm")
    process = launch(project, command, "--checkpoint-every", "0.0001")
    wait_until(lambda: any((path / "checkpoint.safetensors").exists() for path in project.runs("dm")), "no checkpoint")
    process.kill(signal.SIGSTOP)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4000, 4000))
    process.kill(signal.SIGCONT)
    done = process.wait()
    run = only(project, known)
    assert done.code == 1, done
    error, hint = done.err.splitlines()[-2:]
    assert "the file would exceed the largest size allowed here" in error
    assert hint == f"hint: raise the limit: ulimit -f unlimited, then go on with: espctl condense --resume {run.name}"
    before = artifact.read_meta(run / "checkpoint.safetensors")[0]["step"]
    assert before < 40
    project("condense --resume", run.name)
    project(command, "--again")
    other = only(project, [*known, run])
    assert (run / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert artifact.content_digest(run / "synthetic.safetensors") == artifact.content_digest(
        other / "synthetic.safetensors"
    )


@pytest.mark.parametrize("number", [28, 122, 27, 5, 30])
def test_what_may_pass(number: int) -> None:
    found = translate(OSError(number, os.strerror(number), "/a/file"))
    assert isinstance(found, PausedError)
    assert found.message.startswith("/a/file: ")
    assert not isinstance(translate(OSError(13, "denied", "/a/file")), PausedError)
