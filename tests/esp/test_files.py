from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from esp import artifact, files
from esp.errors import ArtifactError


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        artifact.save(tmp_path / "a", {"x": torch.ones(1)}, {})
        files.write_json(tmp_path / "b", {})
        files.write_bytes(tmp_path / "c", b"")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abc"] == [mode] * 3


def test_json_comes_back_and_bad_json_is_an_artifact_error(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    files.write_json(file, {"b": 1, "a": [1.5, "é"]})
    assert files.read_json(file) == {"a": [1.5, "é"], "b": 1}
    assert list(json.loads(file.read_text())) == ["a", "b"]
    for bad in (b"{", b"", b"\xff\xfe", b"[" * 100_000):
        file.write_bytes(bad)
        with pytest.raises(ArtifactError, match="is not valid JSON"):
            files.read_json(file)


def test_digests_are_those_of_sha256(tmp_path: Path) -> None:
    assert files.sha256("é") == files.sha256("é".encode())
    assert files.sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "a").write_bytes(b"abc")
    assert files.file_sha256(tmp_path / "a") == files.sha256("abc")


def test_a_missing_file_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        files.read_json(tmp_path / "nothing")


def interrupted(path: Path) -> None:
    with files.aside(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    files.write_text(path, "é\n")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, float("inf"))
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_bytes() == "é\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert files.canonical({"b": [1, 2.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null]}'
    assert files.canonical({"a": (1,)}) == files.canonical({"a": [1]})
    with pytest.raises(ValueError, match="JSON"):
        files.canonical(float("nan"))
