"""`espctl runs` and `espctl verify`: what they print, and that nothing is lost on the way."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from esp.errors import ArtifactError
from espctl.errors import RunError
from espctl.services import gc, removal
from espctl.services.project import Project

OLD = time.time() - 7200


def esp(project: Any, number: int = 0) -> str:
    return str(project.runs("esp")[number].name)


def trial(project: Any, run: str) -> None:
    """Make a run the trial of a study."""
    with closing(sqlite3.connect(project.home / "espctl.db")) as connection:
        study = "INSERT INTO studies VALUES (1, 'beta', 'digits', 'esp', 1, '{}', 's', '2026-01-31 12:00:00')"
        connection.execute(study)
        connection.execute("INSERT INTO trials VALUES (1, 1, 7, ?, 'finished', 0.5)", [run])
        connection.commit()


def leave(path: Path, moment: float = OLD, content: bytes = b"x" * 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (moment, moment))
    return path


def test_ls_filters_sorts_and_shows_columns(generated: Any) -> None:
    shown = generated("runs ls", "method=esp options.beta<1e-4", "--columns", "seed,options.beta,accuracy").out
    assert shown.splitlines()[0].split() == ["seed", "beta", "accuracy", "%"]
    assert len(shown.splitlines()) == 4
    assert "10.5 ± 0.5 (2, dsa)" in shown
    listed = generated("runs ls --sort -accuracy --limit 2 --json").json
    assert [run["seed"] for run in listed] == [0, 1]
    assert generated("runs ls method=esp or method=random --json").json[0]["method"] == "random"


def test_a_plain_list_ends_at_a_screenful_and_says_so(generated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espctl.cli.runs.SCREENFUL", 3)
    shown = generated("runs ls")
    assert len(shown.out.splitlines()) == 5
    assert "2 more: --limit 0 shows all" in shown.err
    assert len(generated("runs ls --limit 0").out.splitlines()) == 7
    assert len(generated("runs ls --json").json) == 5
    assert "more" not in generated("runs ls method=random").err


def test_ls_shows_what_differs(generated: Any) -> None:
    head = generated("runs ls method=esp --changed").out.splitlines()[0].split()
    assert head == ["id", "seed", "beta", "accuracy", "%"]
    found = generated("runs ls method=esp --changed --json").json
    assert [(run["seed"], run["options.beta"]) for run in found] == [(1, 1e-3), (0, 1e-3), (1, 1e-5), (0, 1e-5)]
    assert set(found[0]) == {"id", "seed", "options.beta", "accuracy"}


def test_a_group_tells_of_runs_that_were_never_scored(generated: Any) -> None:
    silent = generated("runs ls method=esp options.beta=1e-5 --json").json[0]["id"]
    with closing(sqlite3.connect(generated.home / "espctl.db")) as connection:
        connection.execute("DELETE FROM evaluations WHERE run_id = ?", [silent])
        connection.commit()
    found = generated("runs ls method=esp options.beta=1e-5 --group seed --json").json
    assert sorted((group["n"], len(group["runs"]), silent in group["runs"]) for group in found) == [
        (0, 1, True),
        (2, 1, False),
    ]


def test_ls_groups_over_seeds(generated: Any) -> None:
    out = generated("runs ls method=esp --group seed").out
    assert "13.0 ± 0.7 (4)" in out
    assert "11.0 ± 0.7 (4)" in out
    groups = generated("runs ls --group seed --json").json
    assert [(group["method"], group["n"], len(group["runs"])) for group in groups] == [
        ("random", 2, 1), ("esp", 4, 2), ("esp", 4, 2),
    ]  # fmt: skip
    assert groups[1]["mean"] == pytest.approx(0.13)
    assert [group["n"] for group in generated("runs ls method=esp --group seed,beta --json").json] == [8]
    assert "unknown part of a request 'sed'" in generated("runs ls --group sed", code=1).err


@pytest.mark.parametrize(
    ("words", "shown", "code"),
    [
        (("runs ls", "metod=esp"), "  metod=esp\n  ^\n", 1),
        (("runs ls", "method=esp ipc>>1"), "  method=esp ipc>>1\n                ^\n", 1),
        (("runs ls", "options.bata=1"), "did you mean 'beta'?", 1),
        (("runs ls --columns options.bata",), "did you mean 'beta'?", 1),
        (("runs ls --columns metod",), "did you mean 'method'?", 1),
        (("runs ls --changed --group seed",), "exclude each other", 2),
        (("runs rename esp-", "x"), "more than one run begins with", 1),
        (("runs restore nobody",), "the trash is empty", 1),
        (("runs export --all",), "where to is not said", 2),
        (("runs export -o x",), "which runs is not said", 2),
        (("runs import nothing",), "there is no bundle nothing", 1),
        (("verify",), "nothing to verify", 2),
        (("runs gc --json",), "does not ask", 2),
    ],
)
def test_mistakes(generated: Any, words: tuple[str, ...], shown: str, code: int) -> None:
    done = generated(*words, code=code)
    assert shown in done.err
    assert done.out == ""


def test_a_mistake_in_a_long_filter_fits_a_narrow_screen(generated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = generated("runs ls", "method=esp or " * 20 + "metod=esp", code=1).err.splitlines()
    assert max(map(len, lines[1:3])) <= 40
    assert lines[1][lines[2].index("^") :].startswith("metod")


def test_diff(generated: Any) -> None:
    a, b = esp(generated), esp(generated, 3)
    found = generated(f"runs diff {a} {b} --json").json
    named = {one["name"]: (one["a"], one["b"]) for one in found["differences"]}
    assert named["options.beta"] == (1e-5, 1e-3)
    assert named["seed"] == (0, 1)
    assert "convnet3, dsa" in named
    assert "do not differ" in generated(f"runs diff {a} {a}").out
    assert generated(f"runs diff {a} {b}").out.splitlines()[0].split() == [a, b]


def test_labels(generated: Any) -> None:
    run = esp(generated)
    generated(f"runs rename {run} star")
    generated("runs note star", "seen\x1b[31m twice")
    assert generated("runs tag star a b --json").json["tags"] == ["a", "b"]
    assert generated("runs tag star -r a --json").json["tags"] == ["b"]
    assert "\x1b" not in generated("runs note star").out
    assert "star" in generated("runs ls tag=b").out
    (generated.home / "espctl.db").unlink()
    assert generated("runs show star --json").json["detail"]["run"]["note"] == "seen\x1b[31m twice"
    assert generated("runs tag star --json").json == {
        "run": run, "name": "star", "note": "seen\x1b[31m twice", "tags": ["b"],
    }  # fmt: skip
    generated("runs rename star", "")
    assert generated(f"runs note {run}", "", "--json").json["note"] is None


def test_rm_and_restore_bring_everything_back(generated: Any) -> None:
    run = esp(generated)
    generated(f"runs tag {run} keep")
    before = generated("runs ls --json").json
    shown = generated(f"runs show {run} --json").json
    assert "are in the trash" in generated(f"runs rm {run}").err
    assert run not in generated("runs ls").out
    assert "0 runs added" in generated("runs sync").out
    assert [one["run"] for one in generated("runs restore --json").json] == [run]
    generated(f"runs restore {run[:17]}")
    assert generated("runs ls --json").json == before
    assert generated(f"runs show {run} --json").json == shown


def test_rm_says_who_needs_a_run(generated: Any) -> None:
    run, random = esp(generated), generated.runs("random")[0].name
    trial(generated, run)
    made = generated.home / "runs" / esp(generated, 1) / "request.json"
    made.write_text(made.read_text().replace('"kind": "condense"', f'"kind": "compress", "source": {{"run": "{run}"}}'))
    (generated.home / "espctl.db-copy").write_bytes((generated.home / "espctl.db").read_bytes())
    with closing(sqlite3.connect(generated.home / "espctl.db")) as connection:
        connection.execute("UPDATE runs SET request = ? WHERE id = ?", [made.read_text(), made.parent.name])
        connection.commit()
    failed = generated(f"runs rm {run}", code=1)
    assert "trial 7 of the study beta is this run" in failed.err
    assert f"{made.parent.name} was made from it" in failed.err
    assert f"{run} is compared with it" in generated(f"runs rm {random}", code=1).err
    assert len(generated("runs ls --json").json) == 5
    generated(f"runs rm {run} --force")
    assert len(generated("runs ls --json").json) == 4
    generated("runs rm", random, *(path.name for path in generated.runs("esp")))
    assert generated("runs ls --json").json == []


def test_rm_leaves_a_run_that_somebody_works_on(generated: Any) -> None:
    run = esp(generated)
    with (generated.home / "runs" / run / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is working" in generated("runs rm", esp(generated, 1), run, code=1).err
    assert len(generated.runs("esp")) == 4
    assert len(generated("runs ls method=esp --json").json) == 4


def test_rm_of_a_run_whose_folder_is_gone(generated: Any) -> None:
    run = esp(generated)
    (generated.home / "runs" / run).rename(generated.home / "away")
    assert "its folder is gone" in generated("runs sync").err
    assert "whose folder was gone" in generated(f"runs rm {run}").out
    assert generated("runs sync").err == ""


def test_a_kill_between_row_and_folder_leaves_a_folder_that_sync_enters(
    generated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = esp(generated)

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    generated(f"runs rm {run}", code=130)
    monkeypatch.undo()
    assert len(generated("runs ls --json").json) == 4
    assert "1 run added" in generated("runs sync").out
    assert len(generated("runs ls --json").json) == 5


def test_restore_does_not_replace_a_run(generated: Any) -> None:
    run = esp(generated)
    project = Project.open({"home": generated.home})
    folder = removal.remove(project, [run])[0].trash
    assert folder is not None
    generated.home.joinpath("runs", run).mkdir()
    with pytest.raises(RunError, match="there is a run"):
        removal.restore(project, run)
    generated.home.joinpath("runs", run).rmdir()
    (folder / "request.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        removal.restore(project, run)


def test_gc_finds_what_nobody_needs(generated: Any) -> None:
    run, home = esp(generated), generated.home
    generated("runs rm", esp(generated, 1))
    old = [
        leave(home / "runs" / run / "checkpoint.safetensors"),
        leave(home / "runs" / run / ".metrics.jsonl.abc.tmp"),
        leave(home / "experts/store/.expert-0000.safetensors.abc.tmp"),
        leave(home / "experts/store/expert-0001.partial"),
        leave(home / "data/.digits.safetensors.abc.tmp"),
    ]
    leave(home / "experts/store/expert-0001.safetensors")
    kept = [
        leave(home / "experts/store/expert-0002.partial"),  # an unfinished expert goes on from it
        leave(home / "experts/store/.expert-0003.safetensors.abc.tmp", time.time()),  # being written
        leave(home / "runs" / esp(generated, 2) / ".x.tmp", time.time()),
        home / "runs" / run / "synthetic.safetensors",
    ]
    empty = home / "runs/half"
    empty.mkdir()
    os.utime(empty, (OLD, OLD))
    listed = generated("runs gc --dry-run --json").json
    assert {Path(item["path"]) for item in listed["items"]} >= {*old, empty}
    assert {item["kind"] for item in listed["items"]} == set(gc.KINDS)
    assert listed["freed"] == sum(item["bytes"] for item in listed["items"]) > 5000
    assert not listed["removed"]
    assert all(path.exists() for path in old)
    assert "in all" in generated("runs gc --dry-run").out
    assert generated("runs gc --yes --json").json["freed"] == listed["freed"]
    assert not any(path.exists() for path in [*old, empty])
    assert all(path.exists() for path in kept)
    assert generated("runs gc --yes --json").json["items"] == []
    assert generated("runs restore --json").json == []
    assert "0 damaged" in generated(f"verify {run}").out


def test_gc_asks(generated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leave(generated.home / "runs" / esp(generated) / "checkpoint.safetensors")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "nothing was changed" in generated("runs gc", code=130).err
    assert path.exists()


def test_verify_finds_a_byte_in_any_file(generated: Any) -> None:
    run = generated.home / "runs" / esp(generated)
    assert "1 run: 5 files, 0 damaged" in generated(f"verify {run.name}").out
    for name, old, new in (
        ("synthetic.safetensors", "numbers", "nombers"),
        ("request.json", '"beta": 1e-05', '"beta": 2e-05'),
        ("outcome.json", '"sha256": "', '"sha256": "0'),
        ("evaluations/dsa.s0.json", '"accuracy": 0.1', '"accuracy": 0.9'),
    ):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))
        found = generated(f"verify {run.name} --json", code=1).json
        assert len(found[0]["problems"]) >= 1, name
        (run / name).write_text(text)
    (run / "synthetic.safetensors").unlink()
    assert "is gone" in generated("verify --all", code=1).out


def test_verify_checks_experts_and_data(project: Any) -> None:
    expert = next(project.home.glob("experts/*/expert-0000.safetensors"))
    assert "1 run, 2 experts, 1 data set" in project("verify --all").out
    content = bytearray(expert.read_bytes())
    content[-1] ^= 1
    expert.write_bytes(content)
    damaged = [one["name"] for one in project("verify --all --json", code=1).json if one["problems"]]
    assert damaged == [f"{expert.parent.name}/{expert.name}"]


def test_sync_rebuilds_the_database(generated: Any) -> None:
    generated(f"runs tag {esp(generated)} keep")
    before = generated("runs ls --json").json
    for path in generated.home.glob("espctl.db*"):
        path.unlink()
    assert generated("runs sync --json").json["unchanged"] == [path.name for path in generated.runs()]
    assert generated("runs ls --json").json == before


def test_results_for_publication(generated: Any, tmp_path: Path) -> None:
    done = generated("runs export --all --results", str(tmp_path), "--json").json
    path = Path(done["path"])
    assert path.name == "2026-01-31-cpu-ccccccc-digits.json"
    rows = json.loads(path.read_text())
    assert sorted((row["method"], row["n"]) for row in rows) == [("esp", 4), ("esp", 4), ("random", 2)]
    assert "exists already" in generated("runs export --all --results", str(tmp_path), code=1).err
    generated("runs export --filter method=random --results", str(tmp_path / "r.json"))
    assert [row["method"] for row in json.loads((tmp_path / "r.json").read_text())] == ["random"]


def running(project: Any) -> Path:
    """Make a run look as if another process worked on it."""
    folder = Path(project.runs("esp")[0])
    (folder / "outcome.json").unlink()
    with closing(sqlite3.connect(project.home / "espctl.db")) as connection:
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(sep=" ")
        connection.execute(
            "UPDATE runs SET state = 'running', started = ?, outcome = NULL WHERE id = ?", [now, folder.name]
        )
        connection.commit()
    return folder


def test_watch_once(generated: Any) -> None:
    assert "no run is under way" in generated("runs watch").err
    folder = running(generated)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 1.5}\n{"step":')
    out = generated("runs watch --once").out
    assert "running  2/3" in out
    assert "loss" in out
    assert "▁ 1.5" in out
    found = generated("runs watch --json").json
    assert found[0]["curves"] == {"loss": [[1, 3.0], [2, 1.5]]}


@pytest.mark.parametrize("columns", ["30", "80"])
def test_watch_on_a_terminal_ends_on_ctrl_c(generated: Any, columns: str) -> None:
    running(generated)
    master, slave = os.openpty()
    command = [sys.executable, "-m", "espctl", "runs", "watch", "--every", "0.2", "--home", str(generated.home)]
    environ = {**os.environ, "COLUMNS": columns, "LINES": "24", "TERM": "xterm"}
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=root, env=environ) as process:
        shown = b""
        while b"running" not in shown or b"loss" not in shown:
            shown += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()
    os.set_blocking(master, False)
    try:
        shown += os.read(master, 65536)
    except BlockingIOError:
        pass
    finally:
        os.close(master)
        os.close(slave)
    assert b"Traceback" not in shown
    assert b"error" not in shown
    assert shown.rstrip().endswith(b"\x1b[?25h")  # the cursor is back
