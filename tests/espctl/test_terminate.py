"""SIGTERM ends every kind of work within five seconds, also in the middle of one long step, and what there is is saved.

Clusters kill what is still there soon after. The machine that runs the tests may be busy with others: what is measured
is the time that the process itself computed, and, where it hardly computes, the time on the wall.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from esp import artifact

SECONDS = 5.0
ESP = "-m esp --set segment=2 --set start_max=2 -P latent,decoders=2"
MTT = "-m mtt --set segment=2 --set start_max=2 --set student_steps=3000"
LONG = {
    "dm": "-m dm --set real_batch=150",
    "dc": "-m dc",
    "dsa": "-m dsa",
    "idc": "-m idc",
    "cafe": "-m cafe --set outer=1000 --set settled=0",
    "esp": ESP,
    "mtt": MTT,
    "kfs": "-m kfs -P latent,decoders=2",
    "kip": "-m kip",
    "kip-conv": "-m kip --set kernel=conv",
}


def computed(pid: int) -> float:
    """Seconds that a process and its threads have computed."""
    values = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def stop(process: Any) -> tuple[Any, float]:
    """Terminate a process: how it ended, and the seconds that it computed after the signal."""
    before, last, done = computed(process.pid), computed(process.pid), None
    process.kill(signal.SIGTERM)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        last = computed(process.pid)
        if state == "Z":
            done = process.wait()
            break
        time.sleep(0.01)
    assert done is not None, "it does not end"
    return done, last - before


@pytest.mark.parametrize("name", LONG)
def test_a_step_of_every_method_ends(project: Any, launch: Any, wait_until: Any, name: str) -> None:
    known = project.runs()
    process = launch(project, f"condense -d digits --ipc 1 {LONG[name]} --checkpoint-every 1000")
    wait_until(lambda: any((p / "metrics.jsonl").exists() for p in project.runs() if p not in known), "it never began")
    begun = computed(process.pid)
    wait_until(lambda: computed(process.pid) > begun + 1.0, "it does not work")  # in its first steps, or between
    done, seconds = stop(process)
    [run] = [path for path in project.runs() if path not in known]
    assert done.code == 130
    assert done.err.endswith(f"hint: go on with: espctl condense --resume {run.name}\n")
    assert seconds < SECONDS
    assert artifact.read_meta(run / "checkpoint.safetensors")[0]["step"] >= 0
    assert project("runs ls", f"id={run.name}", "--json").json[0]["state"] == "interrupted"


STUCK = """
import os, signal, sys, threading, time, torch
from espctl.jobs import signals

torch.set_num_threads(1)
matrix = torch.randn(6000, 6000, dtype=torch.float64)
saved = lambda: open(sys.argv[1], "w").write("saved")
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
with signals.stoppable('go on with: this'), signals.stoppable('and this'), signals.saving(saved):
    print(time.monotonic(), flush=True)
    torch.linalg.eigh(matrix @ matrix.T)
print("came to its end")
"""


def test_one_call_that_takes_minutes_ends_and_what_there_is_is_saved(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(tmp_path / "saved")], capture_output=True, text=True, check=False, timeout=90,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    begun, now = float(done.stdout.split()[0]), time.monotonic()
    assert done.returncode == 130
    assert (tmp_path / "saved").read_text() == "saved"
    assert done.stderr.endswith("error: interrupted\nhint: go on with: this\n")
    assert "came to its end" not in done.stdout
    assert now - begun < 1.0 + SECONDS
