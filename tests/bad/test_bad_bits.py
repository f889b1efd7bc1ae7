"""Corruption: every bit of a small artifact flipped in turn, truncations at every length, swapped files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from esp import artifact
from esp.errors import ArtifactError, EspError
from espctl.store import bundle


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "x.safetensors"
    tensors = {"a": torch.tensor([1.5, -2.0]), "theta": torch.arange(4, dtype=torch.uint8).view(2, 2)}
    artifact.save(path, tensors, {"kind": "x"}, by_row=["theta"])
    return path


def test_every_flipped_bit_of_an_artifact_is_found(small: Path, tmp_path: Path) -> None:
    data, path = small.read_bytes(), tmp_path / "x.safetensors"
    before = artifact.load(small)
    for place in range(len(data) * 8):
        bent = bytearray(data)
        bent[place // 8] ^= 1 << place % 8
        path.write_bytes(bent)
        try:
            found = artifact.load(path)
        except ArtifactError:
            continue
        # A bit of the white space that pads a header says nothing: then everything must still be as it was.
        assert found.meta == before.meta
        assert found.digest == before.digest
        assert all(torch.equal(found.tensors[name], before.tensors[name]) for name in before.tensors)


def test_every_truncation_of_an_artifact_is_found(small: Path, tmp_path: Path) -> None:
    data, path = small.read_bytes(), tmp_path / "x.safetensors"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            artifact.load(path)
        with pytest.raises(ArtifactError):
            artifact.read_rows(path, "theta", 0, 2)


@pytest.mark.parametrize("target", ["x.tar", "x.tar.gz", "x"])
def test_every_altered_byte_of_a_bundle_is_found_or_says_nothing(tmp_path: Path, target: str) -> None:
    source = tmp_path / "request.json"
    source.write_bytes(b'{"a": 1}')
    bundle.pack({"runs/r/request.json": source}, ["r"], "0", tmp_path / target)
    files = [tmp_path / target] if target != "x" else sorted(p for p in (tmp_path / target).rglob("*") if p.is_file())
    number = 0
    for path in files:
        data = path.read_bytes()
        # Of a tar file the zeros that fill its blocks are left out, but for some.
        places = [i for i, value in enumerate(data) if value or i % 97 == 0]
        for place in places:
            bent = bytearray(data)
            bent[place] ^= 1 << place % 8
            path.write_bytes(bent)
            number += 1
            there = tmp_path / f"out{number}"
            there.mkdir()
            try:
                bundle.unpack(tmp_path / target, there, 2**20)
            except EspError:
                pass
            else:
                assert (there / "runs/r/request.json").read_bytes() == b'{"a": 1}'
                assert [p.name for p in there.rglob("*") if p.is_file()] == ["request.json"]
        path.write_bytes(data)


def test_a_truncated_bundle_is_found_at_every_length(tmp_path: Path) -> None:
    source = tmp_path / "request.json"
    source.write_bytes(b'{"a": 1}')
    bundle.pack({"runs/r/request.json": source}, ["r"], "0", tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    end = data.rindex(b'{"a": 1}') + 8  # zeros follow
    for length in range(0, end, 7):
        (tmp_path / "x.tar").write_bytes(data[:length])
        (tmp_path / f"out{length}").mkdir()
        with pytest.raises(EspError):
            bundle.unpack(tmp_path / "x.tar", tmp_path / f"out{length}", 2**20)


def test_swapped_files_are_found(finished: Any, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    [run] = project.runs("esp")
    first, second = sorted(project.home.glob("experts/*/expert-*.safetensors"))
    data, expert = project.home / "data" / "digits.safetensors", first.read_bytes()
    content = data.read_bytes()
    first.write_bytes(second.read_bytes())
    assert "expert" in project("verify", run.name, code=1).out
    first.write_bytes(content)
    data.write_bytes(expert)
    for words in ("experts ls", f"evaluate {run.name} --epochs 1"):
        assert "error: " in project(words, code=1).err
