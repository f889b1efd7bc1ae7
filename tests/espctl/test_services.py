"""Parts of the driver on their own: processes, devices, provenance, formats, published numbers, locks."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from esp.errors import BudgetError, EspError, InputError, UnknownNameError
from esp.files import canonical, sha256
from espctl.errors import Interrupted, RunError
from espctl.jobs import compute, pool, worker
from espctl.report import formats, published
from espctl.services import condense, provenance
from espctl.services.project import Project, dataset_name, slug
from espctl.settings import Compute

WORK = """
import os, time
from pathlib import Path
from esp.errors import UnknownNameError

def square(item, report):
    report({"item": item, "process": os.getpid()})
    return item * item

def meet(folder, report):  # ends only when two processes are in it at the same time
    (Path(folder) / str(os.getpid())).touch()
    for _ in range(600):
        if len(list(Path(folder).iterdir())) >= 2:
            return os.getpid()
        time.sleep(0.05)
    raise TimeoutError

def fail(item, report):
    if item == 1:
        raise UnknownNameError("thing", "blue", ["blau"])
    time.sleep(60)

def unsendable(item, report):
    return lambda: item

class Absent:  # cannot be made anew in a worker
    def __reduce__(self):
        return _raise, ()

def _raise():
    raise OSError(2, "No such library", "libx.so")

def die(number, report):
    os.kill(os.getpid(), number)
    time.sleep(60)

def endless(folder, report):
    try:
        (Path(folder) / f"begun {os.getpid()}").touch()
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        time.sleep(0.3)  # a second signal must not stop it from saving
        (Path(folder) / f"saved {os.getpid()}").touch()
        raise
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that worker processes can import."""
    (tmp_path / "work_of_a_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    import work_of_a_test  # type: ignore[import-not-found]

    yield work_of_a_test
    sys.modules.pop("work_of_a_test")


def test_one_job_works_here_and_in_order(work: Any) -> None:
    events: list[dict[str, Any]] = []
    found = pool.run_all(work.square, [3, 1, 2], 1, events.append)
    assert next(found) == (3, 9)
    assert [event["item"] for event in events] == [3], "work is done when it is asked for"
    assert list(found) == [(1, 1), (2, 4)]
    assert {event["process"] for event in events} == {os.getpid()}


def test_several_jobs_work_elsewhere_and_every_event_arrives(work: Any) -> None:
    events: list[dict[str, Any]] = []
    assert sorted(pool.run_all(work.square, list(range(6)), 2, events.append)) == [(i, i * i) for i in range(6)]
    assert sorted(event["item"] for event in events) == list(range(6))
    assert os.getpid() not in {event["process"] for event in events}


def test_several_jobs_work_at_the_same_time(work: Any, tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    found = dict(pool.run_all(work.meet, [str(tmp_path / "meeting"), f"{tmp_path}/meeting/"], 2, lambda _: None))
    assert len(set(found.values())) == 2


def test_an_error_travels_whole_and_stops_the_rest(work: Any) -> None:
    began = time.monotonic()
    with pytest.raises(UnknownNameError) as caught:
        list(pool.run_all(work.fail, [0, 1, 2], 2, lambda _: None))
    assert caught.value.message == "unknown thing 'blue'"
    assert caught.value.hint == "did you mean 'blau'?"
    assert time.monotonic() - began < 30


def test_a_killed_worker_is_a_sentence(work: Any) -> None:
    with pytest.raises(RunError, match=r"a process was killed \(signal 9\)") as caught:
        list(pool.run_all(work.die, [signal.SIGKILL] * 3, 2, lambda _: None))
    assert "--jobs 1" in str(caught.value.hint)
    with pytest.raises(Interrupted):
        list(pool.run_all(work.die, [signal.SIGTERM] * 3, 2, lambda _: None))


def test_what_cannot_cross_processes_is_said(work: Any) -> None:
    with pytest.raises(EspError, match="pickle"):
        list(pool.run_all(work.unsendable, [0, 1], 2, lambda _: None))
    with pytest.raises(EspError, match=r"libx\.so"):
        list(pool.run_all(work.square, [work.Absent(), work.Absent()], 2, lambda _: None))


@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 130), (signal.SIGKILL, False, -signal.SIGKILL)],
    ids=["Ctrl-C in a terminal", "SIGTERM from a scheduler", "killed"],
)
def test_the_end_of_a_process_is_the_end_of_its_workers_which_have_saved(
    work: Any, tmp_path: Path, wait_until: Any, number: int, whole_group: bool, code: int
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    program = f"""
import os
import work_of_a_test
from espctl.jobs import pool, signals
if __name__ == "__main__":
    with signals.stoppable():
        try:
            list(pool.run_all(work_of_a_test.endless, [{str(folder)!r}] * 3, 2, print))
        except (KeyboardInterrupt, pool.Interrupted):
            os._exit(130)  # as espctl does: what is still there then is nobody's
"""
    (tmp_path / "main.py").write_text(program)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(list(folder.glob("begun*"))) == 2, "the workers do not start")
        (os.killpg if whole_group else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=60)  # until the last of them lets go of stderr
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, err) == (code, "")
    assert len(list(folder.glob("saved*"))) == len(list(folder.glob("begun*"))) == 2


@pytest.mark.parametrize(
    "error", [EspError("a", "b"), UnknownNameError("k", "a", ["b"]), Interrupted("go on"), BudgetError("x")]
)
def test_errors_cross_processes_as_they_are(error: EspError) -> None:
    again = copy.copy(error)  # made anew from what travels
    assert (type(again), again.message, again.hint, str(again)) == (
        type(error),
        error.message,
        error.hint,
        error.message,
    )


def test_every_auto_of_the_compute_settings_is_resolved() -> None:
    found = compute.resolve(Compute(), 1.0)
    assert found.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert found.threads == len(os.sched_getaffinity(0))
    assert (found.chunk, found.compile) == (512 if found.device == "cuda" else 64, False)
    assert compute.resolve(Compute(device="cpu", chunk=7), 1.0).chunk == 7
    assert compute.resolve(Compute(device="cpu"), 1.0, jobs=10_000).threads == 1
    assert compute.resolve(Compute(device="cpu", threads=3), 1.0, jobs=2).threads == 3
    for choice, wanted in (("on", True), ("off", False)):
        assert compute.resolve(Compute(device="cpu", compile=choice), 0.0).compile is wanted  # type: ignore[arg-type]
    assert compute.Compute(**found.describe()) == found


def test_long_work_is_compiled_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    chosen = Compute(device="cpu", threads=1)
    enough = compute.FLOPS_PER_SECOND["cpu"] * compute.WORTH_COMPILING
    assert compute.resolve(chosen, enough * 1.01).compile
    assert not compute.resolve(chosen, enough * 0.99).compile
    assert not compute.resolve(replace(chosen, threads=4), enough * 1.01).compile
    (tmp_path / "g++").unlink()
    assert not compute.resolve(chosen, enough * 100).compile


@pytest.mark.parametrize("name", ["cuda:99", "cuda"])
def test_a_device_that_is_not_there(name: str) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError, match="no CUDA device"):
        compute.resolve(Compute(device=name), 1.0)
    with pytest.raises(InputError, match="no CUDA device"):
        compute.Compute(name, 1, 1, False).apply()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_peak_memory_begins_with_the_work() -> None:
    device = compute.Compute("cpu", 1, 512, False).apply()
    before = compute.peak_memory(device)
    held = bytearray(b"x" * 300_000_000)
    assert compute.peak_memory(device) > before + 250e6
    del held
    assert compute.peak_memory(compute.Compute("cpu", 1, 512, False).apply()) < before + 150e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
@pytest.mark.parametrize(("chosen", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "65536"}, False)])
def test_freed_memory_is_kept_unless_the_user_says_otherwise(chosen: dict[str, str], kept: bool) -> None:
    program = """
import resource, torch
from espctl.jobs.compute import Compute
Compute("cpu", 1, 1, False).apply()
for size in (100_000_000, 40_000_000):  # what the first leaves is enough for the second
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(size, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**environ, **chosen}, capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) < 10) is kept, "pages taken anew, of 9,766, or of 19 huge ones"


def test_peak_memory_is_that_of_this_process() -> None:
    assert 50e6 < compute.peak_memory(torch.device("cpu")) < 100e9


def test_provenance_names_versions_and_the_state_of_the_source() -> None:
    found = provenance.collect()
    facts = found.facts
    assert facts["torch"] == torch.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["processor"]
    assert facts["git_patch_sha256"] == (sha256(found.patch) if found.patch else None)
    canonical(facts)
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert facts["git_commit"] == done.stdout.strip()


def test_provenance_without_a_checkout_or_with_changes(tmp_path: Path) -> None:
    assert provenance._git_state(tmp_path) == (None, "")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one\n")
    for words in (["init", "-q"], ["add", "file"], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)
    commit, patch = provenance._git_state(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    assert patch == ""
    (tmp_path / "file").write_text("two\n")
    assert "+two" in provenance._git_state(tmp_path)[1]


AWKWARD = (
    ["a|b", "50% & $x_1", "3.0 ± 0.1"],
    [["#{1}~^\\", "x,\"y\"\nz", "—"]],
    "Caption_1: 5% ± 1",
)  # fmt: skip


def test_markdown_keeps_one_row_on_one_line() -> None:
    columns, rows, caption = AWKWARD
    lines = formats.markdown(columns, rows, caption).splitlines()
    assert lines[0] == "| a\\|b | 50% & $x_1 | 3.0 ± 0.1 |"
    assert lines[1] == "| --- | --- | --- |"
    assert len(lines) == 5
    assert lines[3:] == ["", caption]


def test_csv_gives_back_what_went_in() -> None:
    columns, rows, caption = AWKWARD
    text = formats.comma_separated(columns, rows, caption)
    assert list(csv.reader(io.StringIO(text))) == [columns, *rows]


def test_latex_escapes_what_latex_would_read() -> None:
    columns, rows, caption = AWKWARD
    text = formats.latex(columns, rows, caption)
    assert r"50\% \& \$x\_1 & 3.0 $\pm$ 0.1 \\" in text
    assert r"\#\{1\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert r"\caption{Caption\_1: 5\% $\pm$ 1}" in text
    assert r"\begin{tabular}{lll}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 1


def test_the_published_numbers() -> None:
    everything = published.everything()
    assert len(everything) == 218
    assert {number.table for number in everything} == {"1", "2", "3", "4"}
    assert all(0 < number.mean < 100 and (number.sd is None or 0 <= number.sd < 10) for number in everything)
    cells = [(n.table, n.dataset, n.ipc, n.method, n.network) for n in everything]
    assert len(set(cells)) == len(cells)
    for cell, mean, sd in (
        (("1", "cifar10", 1, "random", "convnet3"), 14.4, 2.0),
        (("1", "svhn", 10, "random", "convnet3"), 35.1, 4.1),
        (("2", "svhn", 1, "dsa", "resnet10"), 13.2, 1.1),
        (("3", "cifar10", 50, "dsa", "efficientnetv2s"), 33.7, 0.2),
        (("4", "cifar10", 1, "esp:proj", "convnet3"), 41.3, 0.2),
    ):
        found = published.find(*cell)
        assert found is not None
        assert (found.mean, found.sd) == (mean, sd)
    assert published.find("1", "digits", 1, "esp", "convnet3") is None


def test_a_lock_is_held_by_one_process_and_dies_with_it(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from espctl.jobs.worker import locked
with locked(Path({str(tmp_path)!r})):
    print("held", flush=True)
    input()
"""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process is working on") as caught, worker.locked(tmp_path):
            pass
        assert caught.value.hint
        other.kill()
    (tmp_path / ".synthetic.safetensors.abc.tmp").touch()
    with worker.locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"], "what a killed process left is removed"


def test_progress_is_reported_after_every_step(project: Any) -> None:
    seen: list[tuple[int, dict[str, float | str]]] = []
    opened = Project.open({"home": project.home, "condense.method": "dm"})
    prepared = condense.prepare(opened, condense.Request("digits", 1, {"steps": "5", "real_batch": "8"}))
    record = condense.start(opened, prepared, lambda done, values: seen.append((done, values)))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5]
    assert all("dm" in values for _, values in seen)
    assert (record.state, prepared.steps) == ("finished", 5)
    assert condense.existing(opened, prepared) == record


def test_a_long_run_is_logged_a_thousand_times(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LOGGED_STEPS", 3)
    project("condense -d digits --ipc 1 -m dm --set steps=8 --set real_batch=8")
    [run] = project.runs("dm")
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("options", "steps"), [({"steps": "7", "lr_codes": "1e-2"}, 7), ({}, 10_000), ({"start": "real"}, 10_000)]
)
def test_options_of_a_method_are_typed(options: dict[str, str], steps: int) -> None:
    assert condense.method_options("esp", options).steps == steps


def test_the_key_of_a_request_is_its_content(project: Any) -> None:
    def key(seed: int, **options: str) -> str:
        opened = Project.open({"home": project.home, "condense.method": "dm", "condense.seed": seed})
        return condense.prepare(opened, condense.Request("digits", 1, options)).key

    assert key(0) == key(0) == key(0, steps="20000")
    assert len({key(0), key(1), key(0, steps="7")}) == 3


@pytest.mark.parametrize(
    ("text", "name"), [("folder:/a b/ö", "folder--a-b"), ("esp", "esp"), ("..", ""), ("x" * 90, "x" * 40)]
)
def test_a_slug_is_safe_in_a_file_name(text: str, name: str) -> None:
    assert slug(text) == name


def test_the_name_of_a_data_set_is_made_canonical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dataset_name("cifar10") == "cifar10"
    assert dataset_name("folder:mine") == f"folder:{tmp_path / 'mine'}"
    with pytest.raises(UnknownNameError):
        dataset_name("cifar")
