"""A few of the cases of `make torture`: real processes that are killed, and whose disk fails, where it matters."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from . import cases, invariants, programs
from .__main__ import summary
from .cases import Bench, Case, Outcome
from .commands import COMMANDS, Homes
from .programs import FAIL, SIGNAL, Fault

counted = pytest.mark.skipif(programs.compiler() is None, reason="no C compiler: no write can be made to fail")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[programs.Server]:
    library = programs.build(tmp_path_factory.mktemp("library")) if programs.compiler() else None
    with programs.server(library) as made:
        yield made


@pytest.fixture(scope="module")
def homes(server: programs.Server, tmp_path_factory: pytest.TempPathFactory) -> Homes:
    return Homes(tmp_path_factory.mktemp("prepared"), server)


@pytest.fixture(scope="module")
def bench(server: programs.Server, homes: Homes, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("cases"), server, homes, {})


def survives(bench: Bench, case: Case) -> Outcome:
    outcome = bench.run(case)
    assert not outcome.wrong, f"{outcome.case}, hit {outcome.hit}: " + "\n".join(outcome.wrong)
    return outcome


@pytest.mark.parametrize(
    ("command", "what", "share"),
    [
        ("condense", "SIGKILL", 0.6),
        ("experts build", "SIGKILL", 0.5),
        ("compress", "SIGKILL", 0.3),
        ("runs tag", "SIGTERM", 1.0),  # when the command has done its work, and the database is closed
        ("runs restore", "SIGTERM", 0.1),
        ("runs import", "SIGINT", 0.8),
        ("db upgrade", "SIGKILL", 0.4),
        ("db rebuild", "SIGKILL", 0.5),
    ],
)
@counted
def test_a_process_that_is_stopped_at_a_write_loses_nothing(
    bench: Bench, command: str, what: str, share: float
) -> None:
    count = bench.undisturbed(command).count(what)
    assert survives(bench, Case(command, what, max(1, round(share * count)))).hit


@pytest.mark.parametrize("command", ["runs rm", "runs export"])
def test_a_process_that_is_killed_at_a_moment_loses_nothing(bench: Bench, command: str) -> None:
    survives(bench, Case(command, "SIGKILL", 0.5))


@pytest.mark.parametrize(
    ("command", "what", "share", "stays"),
    [
        ("condense", "ENOSPC", 0.5, True),
        ("compress", "EROFS", 0.3, True),
        ("runs gc", "EIO", 0.5, False),
        ("runs import", "ENOSPC", 0.5, True),
        ("db upgrade", "EROFS", 0.6, False),
        ("db rebuild", "EIO", 0.2, True),
    ],
)
@counted
def test_a_write_that_fails_is_told_in_a_sentence_and_loses_nothing(
    bench: Bench, command: str, what: str, share: float, stays: bool
) -> None:
    count = bench.undisturbed(command).count(what)
    assert survives(bench, Case(command, what, max(1, round(share * count)), stays)).hit


@counted
def test_the_fault_comes_at_the_call_that_is_named(server: programs.Server, homes: Homes, tmp_path: Path) -> None:
    home, words = homes.copy("condensed", tmp_path), homes.words(COMMANDS["runs tag"])
    calm = server.run(homes.copy("condensed", tmp_path / "calm"), words)
    assert calm.fired == ""
    first = server.run(home, words, Fault(SIGNAL, 1, signal.SIGKILL))
    assert (first.code, first.changes[0]) == (-signal.SIGKILL, 1)
    assert first.fired.startswith("open espctl.db")
    full = server.run(home, words, Fault(FAIL, 1, cases.ERRORS["ENOSPC"], stays=True))
    assert full.code == 1
    assert "check that the disk is not full" in full.err
    assert server.run(home, words).code == 0


def test_what_must_hold_is_looked_at(homes: Homes, tmp_path: Path) -> None:
    home = homes.copy("condensed", tmp_path)
    assert invariants.broken(home) == []
    before, run = invariants.content(home), homes.run
    path = home / "runs" / run / "synthetic.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert any("does not have its checksum" in problem for problem in invariants.broken(home))
    assert any(
        "synthetic.safetensors differs" in one for one in invariants.differences(invariants.content(home), before)
    )
    shutil.rmtree(home / "runs" / run)
    assert any(f"the run {run} has no folder" in problem for problem in invariants.broken(home))
    with closing(sqlite3.connect(home / "espctl.db")) as raw, raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("DELETE FROM runs")
    assert any(problem.startswith("dangling") for problem in invariants.broken(home))
    with (home / "espctl.db").open("rb+") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096)
    assert invariants.broken(home)


@pytest.mark.parametrize("text", ["condense:SIGKILL:17", "tune:ENOSPC:3+", "runs rm:SIGINT:0.4312"])
def test_a_case_is_repeated_by_what_was_printed(text: str) -> None:
    assert str(Case.parse(text)) == text


def test_the_same_seed_gives_the_same_cases(bench: Bench) -> None:
    first, second, other = (list(cases.kills(40, seed, bench, counted=False)) for seed in (1, 1, 2))
    assert first == second != other
    assert {case.command for case in first} == set(COMMANDS)


def test_survived_and_all_are_counted() -> None:
    hit, lost = Case("condense", "SIGKILL", 3), Case("tune", "EIO", 4)
    found = summary([Outcome(hit, "", (), 1.0), Outcome(lost, "", ("bad",), 1.0), Outcome(lost, "", (), 1.0)])
    assert found["kills"] == {
        "survived": 1, "all": 1, "by_command": {"condense": {"survived": 1, "all": 1}},
        "by_signal": {"SIGKILL": {"survived": 1, "all": 1}},
    }  # fmt: skip
    assert (found["writes"]["survived"], found["writes"]["all"], found["lost"]) == (1, 2, ["tune:EIO:4"])
