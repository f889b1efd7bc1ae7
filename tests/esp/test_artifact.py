from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from esp import artifact
from esp.errors import ArtifactError
from esp.files import canonical, sha256

META = {"name": 'é"z', "rate": 1e-05, "flag": True, "list": [1, None]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "small.safetensors"


def small(path: Path) -> bytes:
    tensors = {"a": torch.tensor([1.5, -2.5]), "rows": torch.arange(6, dtype=torch.uint8).reshape(3, 2)}
    artifact.save(path, tensors, META, by_row=["rows"])
    return path.read_bytes()


def leftovers(folder: Path, *expected: str) -> set[str]:
    return {entry.name for entry in folder.iterdir()} - set(expected)


dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
shapes = st.lists(st.integers(0, 4), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text("abc.", min_size=1, max_size=4), st.tuples(dtypes, shapes), max_size=3))
def test_every_type_and_shape_comes_back(path: Path, wanted: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {name: (torch.rand(shape) * 3).to(dtype) for name, (dtype, shape) in wanted.items()}
    digest = artifact.save(path, tensors, META)
    found = artifact.load(path)
    assert found.meta == META
    assert found.digest == digest == artifact.read_meta(path)[1]
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_equal_content_gives_equal_bytes_whatever_its_order(path: Path) -> None:
    a, b = torch.rand(3), torch.rand(2)
    artifact.save(path, {"a": a, "b": b}, {"x": 1, "y": 2})
    first = path.read_bytes()
    artifact.save(path, {"b": b, "a": a}, {"y": 2, "x": 1})
    assert path.read_bytes() == first


def test_views_and_shared_memory_are_written_apart(path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    artifact.save(path, {"base": base, "transposed": base.T, "row": base[1], "same": base}, {})
    found = artifact.load(path).tensors
    assert torch.equal(found["transposed"], base.T)
    assert torch.equal(found["row"], base[1])
    assert torch.equal(found["same"], base)


def test_every_changed_byte_is_found(path: Path) -> None:
    whole = small(path)
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(whole):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                os.pwrite(file.fileno(), bytes([byte ^ mask]), place)
                with pytest.raises(ArtifactError):
                    artifact.load(path)
            os.pwrite(file.fileno(), bytes([byte]), place)
    artifact.load(path)


def test_every_truncation_and_an_appended_byte_are_found(path: Path) -> None:
    whole = small(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            artifact.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtifactError):
        artifact.load(path)


def test_the_digest_tells_contents_apart(path: Path) -> None:
    ones = torch.ones(4)
    digests = {
        artifact.save(path, {"a": ones}, {}),
        artifact.save(path, {"b": ones}, {}),
        artifact.save(path, {"a": ones}, {"x": 1}),
        artifact.save(path, {"a": ones.reshape(2, 2)}, {}),
        artifact.save(path, {"a": ones.to(torch.float64)}, {}),
        artifact.save(path, {"a": ones.view(torch.int32)}, {}),
    }
    assert len(digests) == 6


def test_a_file_of_someone_else_is_refused(path: Path) -> None:
    path.parent.mkdir()
    for metadata in (None, {"format": "pt"}, {"esp": "{"}, {"esp": "[1]"}, {"esp": "{}"}):
        save_file({"a": torch.ones(1)}, path, metadata=metadata)
        with pytest.raises(ArtifactError, match="was not written by this program"):
            artifact.load(path)


def test_a_newer_format_is_named(path: Path) -> None:
    path.parent.mkdir()
    body = {"format": 2, "meta": {}, "digests": {}}
    esp = canonical({**body, "digest": sha256(canonical(body))})
    save_file({"a": torch.ones(1)}, path, metadata={"esp": esp})
    with pytest.raises(ArtifactError, match="has format 2, this program reads 1"):
        artifact.read_meta(path)


def test_a_tensor_beside_the_listed_ones_is_found(path: Path) -> None:
    path.parent.mkdir()
    body = {"format": 1, "meta": {}, "digests": {}}
    esp = canonical({**body, "digest": sha256(canonical(body))})
    save_file({"a": torch.ones(1)}, path, metadata={"esp": esp})
    with pytest.raises(ArtifactError, match="does not hold the tensors that it lists"):
        artifact.load(path)


def test_a_missing_file_is_an_artifact_error(tmp_path: Path) -> None:
    for read in (artifact.load, artifact.read_meta):
        with pytest.raises(ArtifactError, match="does not exist"):
            read(tmp_path / "nothing")


def test_rows_are_read_and_verified_on_their_own(path: Path) -> None:
    whole = small(path)
    assert artifact.read_rows(path, "rows", 1, 3).tolist() == [[2, 3], [4, 5]]
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])  # in the last row
    assert whole.endswith(bytes(range(6)))
    path.write_bytes(damaged)
    assert artifact.read_rows(path, "rows", 0, 2).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ArtifactError, match="checksum of 'rows'"):
        artifact.read_rows(path, "rows", 1, 3)


@pytest.mark.parametrize("rows", [("rows", 0, 4), ("rows", -1, 2), ("rows", 2, 2), ("a", 0, 1), ("b", 0, 1)])
def test_rows_that_are_not_there_are_refused(path: Path, rows: tuple[str, int, int]) -> None:
    small(path)
    with pytest.raises(ArtifactError, match="has no rows"):
        artifact.read_rows(path, *rows)


def test_a_failure_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    whole = small(path)
    with pytest.raises(ValueError, match="JSON"):
        artifact.save(path, {"x": torch.ones(1)}, {"bad": float("nan")})
    assert path.read_bytes() == whole
    assert not leftovers(path.parent, path.name)


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        artifact.save(tmp_path / "taken", {"x": torch.ones(1)}, {})
    assert not leftovers(tmp_path, "taken")


def test_writing_leaves_no_temporary_file(path: Path) -> None:
    small(path)
    small(path)
    assert not leftovers(path.parent, path.name)


def test_a_file_that_goes_while_it_is_opened_is_missing_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, mapped = safe_open, torch.UntypedStorage.from_file

    def gone_before(name: Path, framework: str) -> object:
        path.unlink()
        return opened(name, framework)

    def gone_between(name: str, **asked: Any) -> object:  # torch opens it again, to map it
        path.unlink()
        return mapped(name, **asked)

    small(path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.UntypedStorage, "from_file", gone_between)
        with pytest.raises(ArtifactError, match=r"small\.safetensors does not exist"):
            artifact.load(path)
    small(path)
    monkeypatch.setattr(artifact, "safe_open", gone_before)
    with pytest.raises(ArtifactError, match=r"small\.safetensors does not exist"):
        artifact.load(path)
