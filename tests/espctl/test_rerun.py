"""Repeating runs: the same bits come out, and what does not is named."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch

from esp import artifact, files


def test_a_repetition_makes_the_same_numbers_in_a_run_of_its_own(project: Any) -> None:
    [source] = project.runs("esp")
    found = project("rerun", source.name, "--check", "--json").json
    repeated = project.home / "runs" / found["repeated"]
    assert repeated.name == f"{source.name}-2"
    assert (found["same"], found["same_metrics"], found["first_step"], found["differences"]) == (True, True, None, [])
    assert found["digest"] == artifact.content_digest(repeated / "synthetic.safetensors")
    requests = [files.read_json(path / "request.json") for path in (source, repeated)]
    assert requests[1]["repeats"] == source.name
    for part in ("request", "compute", "key"):
        assert requests[0][part] == requests[1][part]
    third = project("rerun", source.name, "--json").json
    assert (third["id"], third["state"]) == (f"{source.name}-3", "finished")


def test_what_differs_is_named_and_fails_the_check(project: Any) -> None:
    [source] = project.runs("esp")
    path, request = source / "synthetic.safetensors", files.read_json(source / "request.json")
    found = artifact.load(path)
    tensors = {name: tensor.clone() for name, tensor in found.tensors.items()}
    tensors["codes"].view(-1)[3] += 0.5
    artifact.save(path, tensors, found.meta)
    lines = (source / "metrics.jsonl").read_text().splitlines()
    changed = {**json.loads(lines[3]), "loss": -1.0}
    (source / "metrics.jsonl").write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]) + "\n")
    request["provenance"] |= {"torch": "1.0", "processor": "abacus"}
    files.write_json(source / "request.json", request)
    done = project("rerun", source.name, "--check", code=1)
    assert "synthetic set  different" in done.out
    assert "metrics        different from step 4" in done.out
    assert "codes: off by up to 0.5" in done.out
    assert f"torch: then 1.0, now {torch.__version__}" in done.out
    assert "processor: then abacus" in done.out


def test_a_compressed_run_is_compressed_again_without_a_new_run(project: Any) -> None:
    [source] = project.runs("esp")
    less = project("compress", source.name, "--bits", "2", "--json").json["run"]["id"]
    before = project.runs()
    found = project("rerun", less, "--check", "--json").json
    assert (found["run"], found["same"], found["same_metrics"]) == (less, True, None)
    assert project.runs() == before
    assert f"espctl rerun {less} --check" in project("rerun", less, code=1).err


def test_a_repetition_that_was_stopped_goes_on(project: Any, launch: Any, wait_until: Any) -> None:
    [source] = project.runs("esp")
    repeated = project.home / "runs" / f"{source.name}-2"
    process = launch(project, "rerun", source.name, "--check")
    wait_until((repeated / "metrics.jsonl").exists, "the repetition does not start")
    process.kill(signal.SIGINT)
    assert process.wait().code in (130, 0)
    found = project("rerun", source.name, "--check", "--json").json
    assert (found["same"], found["same_metrics"]) == (True, True)
    assert len(project.runs("esp")) <= 3


def test_what_is_not_finished_cannot_be_repeated(project: Any) -> None:
    [source] = project.runs("esp")
    assert "there is no run 'nothing'" in project("rerun nothing", code=1).err
    Path(source / "outcome.json").unlink()
    (project.home / "espctl.db").unlink()
    assert "finish it first" in project("rerun", source.name, code=1).err
