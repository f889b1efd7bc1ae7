"""Compressed runs: what they store, that they are runs like any other, and that a kill leaves no half of one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from esp import condensed, files


def made(project: Any, bits: int) -> dict[str, Any]:
    found: dict[str, Any] = project("compress", "esp-digits-1", "--bits", str(bits), "--json").json
    return found


def test_a_compressed_run_is_a_run_of_its_own(project: Any) -> None:
    [source] = project.runs("esp")
    found = made(project, 4)
    run, sizes = found["run"], found["sizes"]
    folder = project.home / "runs" / run["id"]
    request, outcome = (files.read_json(folder / f"{name}.json") for name in ("request", "outcome"))
    assert (run["kind"], run["method"], run["parametrisation"], run["state"]) == (
        "compress", "esp", "latent (4 bit)", "finished",
    )  # fmt: skip
    assert request["source"]["run"] == source.name
    assert request["source"]["sha256"] == files.file_sha256(source / "synthetic.safetensors")
    assert request["request"]["compression"] == {"bits": 4, "parametrisation": "latent"}
    assert outcome["stored_bytes"] == sizes["stored_bytes"] < sizes["original_bytes"] / 4
    assert outcome["artifacts"][0]["sha256"] == files.file_sha256(folder / "synthetic.safetensors")
    whole, less = (condensed.load(path / "synthetic.safetensors") for path in (source, folder))
    assert less.images().shape == whole.images().shape
    assert less.meta["run"] == run["id"]
    assert not (folder / "checkpoint.safetensors").exists()


def test_the_same_again_is_looked_up_and_fewer_bits_are_fewer_bytes(project: Any) -> None:
    by_bits = {bits: made(project, bits) for bits in (8, 4, 2)}
    bytes_ = [by_bits[bits]["sizes"]["stored_bytes"] for bits in (8, 4, 2)]
    assert bytes_ == sorted(bytes_, reverse=True)
    errors = [by_bits[bits]["sizes"]["error"] for bits in (8, 4, 2)]
    assert errors == sorted(errors)
    path = project.home / "runs" / by_bits[8]["run"]["id"] / "synthetic.safetensors"
    before = path.stat().st_mtime_ns
    again = made(project, 8)
    assert again["known"]
    assert not by_bits[8]["known"]
    assert path.stat().st_mtime_ns == before
    said = project("compress", by_bits[8]["source"], "--bits", "8")
    assert "made before" in said.err
    assert "times fewer" in said.out


def test_it_is_scored_like_any_set_and_never_mixes_with_what_it_was_made_from(project: Any) -> None:
    [source] = project.runs("esp")
    less = made(project, 8)["run"]["id"]
    for run in (source.name, less):
        project("evaluate", run, "--epochs", "2", "--seeds", "1", "--no-baseline")
    rows = project("report table1 --dataset digits --json").json
    assert sorted((row["method"], row["stored"], tuple(row["runs"])) for row in rows) == [
        ("esp", "latent", (source.name,)),
        ("esp", "latent (8 bit)", (less,)),
    ]


def test_what_cannot_be_compressed_says_why(project: Any) -> None:
    [source] = project.runs("esp")
    less = made(project, 8)["run"]["id"]
    done = project("compress", less, "--bits", "4", code=1)
    assert f"the run {less} is compressed already" in done.err
    assert f"espctl compress {source.name} --bits 4" in done.err
    assert "3 bits are not offered" in project("compress", source.name, "--bits", "3", code=1).err
    assert "there is no run 'nothing'" in project("compress nothing", code=1).err
    (source / "synthetic.safetensors").write_bytes(b"swapped")
    assert "not the file that the run made" in project("compress", source.name, "--bits", "4", code=1).err


def test_an_unfinished_run_cannot_be_compressed(project: Any) -> None:
    [source] = project.runs("esp")
    (source / "outcome.json").unlink()
    (project.home / "espctl.db").unlink()
    assert "finish it first" in project("compress", source.name, code=1).err


@pytest.mark.parametrize("left", [(), ("synthetic.safetensors",), ("synthetic.safetensors", "outcome.json")])
def test_half_a_compressed_run_is_no_run_and_is_made_again(project: Any, left: tuple[str, ...]) -> None:
    """What a kill leaves: the request is written last, so any part of the rest may be there."""
    found = made(project, 2)["run"]
    folder = project.home / "runs" / found["id"]
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    (project.home / "espctl.db").unlink()
    assert found["id"] not in [run["id"] for run in project("runs ls --json").json]
    again = made(project, 2)
    assert (again["run"]["id"], again["known"]) == (found["id"], False)
    assert project("runs show", found["id"], "--json").json["detail"]["run"]["state"] == "finished"


def test_a_killed_compression_leaves_a_whole_run_or_none(project: Any, launch: Any, wait_until: Any) -> None:
    [source] = project.runs("esp")
    folders = set(project.runs())
    process = launch(project, "compress", source.name, "--bits", "8")
    wait_until(lambda: set(project.runs()) != folders, "the compression does not start")
    process.kill()
    assert process.wait().code in (-signal.SIGKILL, 0)
    known = [run["id"] for run in project("runs ls kind=compress --json").json]
    for run in known:
        assert json.loads(Path(project.home / "runs" / run / "outcome.json").read_text())["state"] == "finished"
    assert made(project, 8)["run"]["state"] == "finished"
