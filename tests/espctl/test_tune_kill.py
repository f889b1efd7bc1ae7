"""Workers of a study may be killed at any moment: no trial is lost, and none is counted twice."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

TUNE = "tune -d digits --ipc 1 -m dm --set steps=5 --set real_batch=8 --epochs 2 --trials"


def score_files(project: Any) -> list[Path]:
    return sorted(project.home.glob("runs/*/held_out.json"))


def check(project: Any, count: int) -> None:
    """A study of `count` finished trials, in the study's storage, the run folders and the database alike."""
    shown = project("tune show dm-digits-1", "--json").json
    trials = shown["trials"]
    assert [trial["number"] for trial in trials] == list(range(count))
    assert {trial["state"] for trial in trials} <= {"complete", "pruned"}
    runs = Counter(trial["run"] for trial in trials)
    assert len(runs) == count, "two trials share a run"
    numbers = [json.loads(path.read_text())["trial"] for path in score_files(project)]
    assert sorted(numbers) == list(range(count)), "a trial was worked on in two runs"
    assert shown["default"]["number"] == 0
    assert shown["best"]["value"] >= shown["default"]["value"]
    assert not list(project.home.glob("studies/*/trial-*.lock"))
    assert "none" in project("db check").out


def test_two_processes_are_killed_again_and_again(project: Any, launch: Any, wait_until: Any) -> None:
    chance, count = random.Random(3), 6
    for target in (0, 1, 3):
        processes = [launch(project, f"{TUNE} {count}") for _ in range(2)]
        wait_until(lambda goal=target: len(score_files(project)) >= goal, "no trial is scored")
        time.sleep(chance.uniform(0, 0.5))
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    processes = [launch(project, f"{TUNE} {count}") for _ in range(2)]
    assert [process.wait().code for process in processes] == [0, 0]
    check(project, count)


def test_a_killed_worker_is_replaced_and_its_trial_taken_over(project: Any, launch: Any, wait_until: Any) -> None:
    process = launch(project, f"{TUNE} 3 --jobs 2")
    wait_until(lambda: list(project.home.glob("runs/dm-*/lock")), "no trial is begun")
    workers = [pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    done = process.wait()
    assert done.code == 0
    assert "a worker was killed" in done.err
    check(project, 3)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_an_interrupt_stops_cleanly_and_says_how_to_go_on(project: Any, launch: Any, wait_until: Any) -> None:
    process = launch(project, f"{TUNE} 3")
    wait_until(lambda: score_files(project), "no trial is scored")
    process.kill(signal.SIGINT)
    done = process.wait()
    assert done.code == 130
    *_, error, hint = done.err.splitlines()
    assert error == "error: interrupted"
    assert hint == "hint: go on with: espctl tune --study dm-digits-1 --trials 3 --jobs 1"
    project(hint.removeprefix("hint: go on with: espctl "))
    check(project, 3)


def test_time_that_is_up_is_no_failure(project: Any) -> None:
    done = project(f"{TUNE} 1000 --timeout 1s")
    assert "time is up after" in done.err
    assert "go on with: espctl tune --study dm-digits-1 --trials 1000 --jobs 1" in done.err
    finished = sum(point["state"] != "running" for point in project("tune show dm-digits-1", "--json").json["trials"])
    project(f"{TUNE} {finished + 2}")
    check(project, finished + 2)
