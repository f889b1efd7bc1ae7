"""Work that is killed or interrupted at any moment goes on to the same bytes."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from espctl.jobs import locks

STEPS = 30
OPTIONS = f"--set steps={STEPS} --set real_batch=8 --set segment=2 --set start_max=2 --set restart=7"
CONDENSE = (
    f"condense --dataset digits --ipc 1 --method esp {OPTIONS} -P latent,decoders=2 --seed 5 --checkpoint-every 0.0001"
)


@pytest.fixture(scope="module")
def undisturbed(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the run of this module makes when nobody disturbs it."""
    project = finished.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    project(CONDENSE)
    [run] = [path for path in project.runs("esp") if steps(path) == STEPS]
    return {"name": run.name.encode(), "set": (run / "synthetic.safetensors").read_bytes(), "metrics": values(run)}


def steps(run: Path) -> int:
    """Steps that a run has logged."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def values(run: Path) -> bytes:
    return (run / "metrics.jsonl").read_bytes()


def test_ten_kills_of_a_condensation_lose_nothing(
    project: Any, launch: Any, undisturbed: dict[str, bytes], wait_until: Any
) -> None:
    chance = random.Random(20)
    run = project.home / "runs" / undisturbed["name"].decode()
    command, progress = CONDENSE, []
    # From the first moments, when there is nothing to resume, to shortly before the end.
    for target in [0, *sorted(chance.sample(range(1, STEPS - 8), 9))]:
        process = launch(project, command)
        wait_until((run / "request.json").exists, "the run does not start")
        wait_until(lambda goal=target: steps(run) >= goal, f"the run does not reach step {target}")
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        assert process.wait().code == -signal.SIGKILL
        progress.append(steps(run))
        command = f"condense --resume {run.name} --checkpoint-every 0.0001"
    assert not (run / "outcome.json").exists()
    assert len(set(progress)) >= 6
    assert project(command).code == 0
    assert (run / "synthetic.safetensors").read_bytes() == undisturbed["set"]
    assert values(run) == undisturbed["metrics"]
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [], "temporary files stay behind"
    assert "none" in project("db check").out
    shown = project("runs show", run.name, "--json").json["detail"]["run"]
    assert (shown["state"], shown["error"]) == ("finished", None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_is_saved_and_says_how_to_go_on(
    project: Any, launch: Any, undisturbed: dict[str, bytes], wait_until: Any, number: int
) -> None:
    run = project.home / "runs" / undisturbed["name"].decode()
    process = launch(project, CONDENSE, "--checkpoint-every", "1000")
    wait_until(lambda: steps(run) >= 3, "the run does not start")
    process.kill(number)
    done = process.wait()
    assert done.code == 130
    assert done.err.splitlines() == ["error: interrupted", f"hint: go on with: espctl condense --resume {run.name}"]
    assert (run / "checkpoint.safetensors").exists()
    assert project("runs ls state=interrupted", "--json").json[0]["id"] == run.name
    again = project(CONDENSE, code=1)
    assert f"espctl condense --resume {run.name}" in again.err
    before = steps(run)
    project("condense --resume", run.name)
    assert 3 <= before < STEPS
    assert (run / "synthetic.safetensors").read_bytes() == undisturbed["set"]
    assert values(run) == undisturbed["metrics"]


def is_held(run: Path) -> bool:
    if not run.exists():
        return False
    with locks.glance(run) as free:
        return not free


def test_an_interrupt_before_the_first_step_leaves_a_run_that_can_be_resumed(
    project: Any, launch: Any, undisturbed: dict[str, bytes], wait_until: Any
) -> None:
    run = project.home / "runs" / undisturbed["name"].decode()
    process = launch(project, CONDENSE)
    wait_until(lambda: is_held(run), "the run does not start")
    process.kill(signal.SIGINT)
    done = process.wait()
    assert done.code == 130
    assert done.err.splitlines()[-1] == f"hint: go on with: espctl condense --resume {run.name}"
    project("condense --resume", run.name)
    assert (run / "synthetic.safetensors").read_bytes() == undisturbed["set"]


def test_a_crash_after_the_outcome_was_written_is_mended_by_resume(project: Any, undisturbed: dict[str, bytes]) -> None:
    project(CONDENSE)
    run = project.home / "runs" / undisturbed["name"].decode()
    with closing(sqlite3.connect(project.home / "espctl.db")) as database, database:
        database.execute("UPDATE runs SET state = 'running', finished = NULL, outcome = NULL WHERE id = ?", [run.name])
    begun = (run / "outcome.json").read_bytes()
    assert project("condense --resume", run.name, "--json").json["state"] == "finished"
    assert (run / "outcome.json").read_bytes() == begun, "the work was done again"


def test_two_processes_do_not_work_on_one_run(
    project: Any, launch: Any, undisturbed: dict[str, bytes], wait_until: Any
) -> None:
    run = project.home / "runs" / undisturbed["name"].decode()
    first = launch(project, CONDENSE.replace("--checkpoint-every 0.0001", "--checkpoint-every 1000"))
    wait_until(lambda: steps(run) >= 2, "the run does not start")
    first.kill(signal.SIGSTOP)
    second = project("condense --resume", run.name, code=1)
    assert second.err.startswith(f"error: another process is working on {run.name}\nhint: ")
    assert project("runs ls", f"id={run.name}", "--json").json[0]["state"] == "running"
    first.kill(signal.SIGCONT)
    assert first.wait().code == 0
    assert (run / "synthetic.safetensors").read_bytes() == undisturbed["set"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_build_gives_the_same_experts(project: Any, launch: Any, wait_until: Any, number: int) -> None:
    [store] = (project.home / "experts").iterdir()
    partial, settings = store / "expert-0001.partial", project.home / "espctl.toml"
    wanted = (store / "expert-0001.safetensors").read_bytes()
    for path in store.glob("expert-0001*"):
        path.unlink()
    settings.write_text(settings.read_text().replace("[compute]", "[compute]\ncheckpoint_every = 0.0001"))
    process = launch(project, "experts build --dataset digits", "--quiet")
    wait_until(partial.exists, "nothing is saved")
    if number == signal.SIGINT:
        partial.unlink()  # the interrupt itself must save what there is
    process.kill(number)
    done = process.wait()
    assert done.code == (130 if number == signal.SIGINT else -number)
    assert partial.exists()
    assert [path.name for path in store.glob("expert-0001.*")] == ["expert-0001.partial"]
    if number == signal.SIGINT:
        assert done.err.splitlines() == ["error: interrupted", "hint: run the same command again to go on"]
    assert "1 to train" in project("experts build --dataset digits").err
    assert (store / "expert-0001.safetensors").read_bytes() == wanted
    assert not partial.exists()
    assert "2 experts, 0 damaged" in project("experts verify").out
    assert project("experts build --dataset digits").err == ""


def test_networks_that_are_scored_are_not_trained_again(project: Any, launch: Any, wait_until: Any) -> None:
    [run] = project.runs("esp")
    command = f"evaluate {run.name} --epochs 30 --seeds 3 --no-baseline"
    process = launch(project, command)
    folder = run / "evaluations"
    wait_until(lambda: list(folder.glob("*.json")), "no network is scored")
    process.kill(signal.SIGTERM)
    done = process.wait()
    scored = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert done.code == 130
    assert done.err.endswith("error: interrupted\nhint: run the same command again to go on\n")
    assert 1 <= len(scored) < 3
    with closing(sqlite3.connect(project.home / "espctl.db")) as database, database:
        database.execute("DELETE FROM evaluations")  # as if the process had died before it recorded them
    second = project(command, "--json")
    assert second.json[0]["n"] == 3
    assert {name: (folder / name).read_bytes() for name in scored} == scored
    files = sorted(folder.glob("*.json"))
    assert len(files) == 3
    accuracies = [json.loads(path.read_text())["accuracy"] for path in files]
    assert second.json[0]["mean"] == pytest.approx(sum(accuracies) / 3)
    assert project(command).err == "", "something was trained again"
