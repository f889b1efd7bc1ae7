from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from esp import artifact
from esp.errors import ArtifactError, InputError, MismatchError
from esp.trajectory import Experts, Trajectory, complaints, open_trajectory

CPU = torch.device("cpu")
P = 50


def write(path: Path, epochs: int = 6, dtype: torch.dtype = torch.float32, **meta: Any) -> torch.Tensor:
    theta = torch.randn(epochs + 1, P, generator=torch.Generator().manual_seed(epochs)).to(dtype)
    described = {"kind": "trajectory", "network": "convnet3", "fingerprint": "f" * 64, "epochs": epochs, **meta}
    artifact.save(path, {"theta": theta}, described, by_row=["theta"])
    return theta


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "expert-0000.safetensors"


def test_a_segment_is_its_rows(path: Path) -> None:
    theta = write(path)
    trajectory = open_trajectory(path)
    assert trajectory.epochs == 6
    for start in range(7):
        for length in range(7 - start):
            assert torch.equal(trajectory.segment(start, length), theta[start : start + length + 1])


@pytest.mark.parametrize(("start", "length"), [(0, 7), (6, 1), (4, 3), (7, 0)])
def test_a_segment_past_the_end_is_named(path: Path, start: int, length: int) -> None:
    write(path)
    with pytest.raises(InputError, match=f"a segment of {length} epochs from epoch {start} does not fit") as caught:
        open_trajectory(path).segment(start, length)
    assert "at most 6 epochs" in caught.value.hint


def test_bfloat16_comes_back_as_float32(path: Path) -> None:
    theta = write(path, dtype=torch.bfloat16)
    segment = open_trajectory(path).segment(1, 3)
    assert segment.dtype == torch.float32
    assert torch.equal(segment, theta[1:5].float())


def test_an_altered_byte_is_found_in_the_rows_that_hold_it(path: Path) -> None:
    theta = write(path)
    whole = path.read_bytes()
    body = len(whole) - theta.numel() * 4
    assert whole[body:] == theta.numpy().tobytes()
    for row in range(7):
        place = body + (row * P + row) * 4 + row % 4
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        trajectory = open_trajectory(path)
        for start in range(6):
            if start <= row <= start + 1:
                with pytest.raises(ArtifactError, match="checksum of 'theta'"):
                    trajectory.segment(start, 1)
            else:
                assert torch.equal(trajectory.segment(start, 1), theta[start : start + 2])


def test_an_altered_header_is_found_on_opening(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"convnet3", b"convnet4"))
    with pytest.raises(ArtifactError, match="checksum of its header"):
        open_trajectory(path)


def test_something_else_is_no_trajectory(path: Path) -> None:
    write(path, kind="synthetic")
    with pytest.raises(MismatchError, match="is not an expert trajectory"):
        open_trajectory(path)


def opened(folder: Path, *metas: dict[str, Any]) -> Experts:
    files = []
    for number, meta in enumerate(metas):
        files.append(folder / f"expert-{number:04d}.safetensors")
        write(files[-1], **meta)
    return Experts(tuple(open_trajectory(file) for file in files))


def test_experts_are_as_long_as_the_shortest(tmp_path: Path) -> None:
    assert opened(tmp_path, {"epochs": 6}, {"epochs": 4}, {"epochs": 5}).epochs == 4


@pytest.mark.parametrize(
    ("meta", "error", "message"),
    [
        ({"network": "convnet4"}, MismatchError, "has network convnet4, not convnet3"),
        ({"fingerprint": "e"}, MismatchError, "has fingerprint e, not ffff"),
        ({"epochs": 4}, InputError, "has 4 epochs, but segments of 5 were asked"),
    ],
)
def test_the_expert_that_does_not_fit_is_named(
    tmp_path: Path, meta: dict[str, Any], error: type[Exception], message: str
) -> None:
    opened(tmp_path, {}, {}).require("convnet3", "f" * 64, 5)
    with pytest.raises(error, match=f"expert-0001.safetensors {message}"):
        opened(tmp_path, {}, meta, {}).require("convnet3", "f" * 64, 5)


def test_a_segment_gives_its_first_snapshot_and_its_span_and_is_kept(tmp_path: Path) -> None:
    experts = opened(tmp_path, {}, {"epochs": 5})
    first, space = experts.segment(1, 2, 3, CPU)
    rows = experts.trajectories[1].segment(2, 3)
    assert torch.equal(first, rows[0])
    assert space.basis.shape == (P, 4)
    for row in rows:
        assert space.outside(row).norm() < 1e-5 * row.norm()
    assert experts.segment(1, 2, 3, CPU)[1] is space
    for expert, start, length in ((0, 2, 3), (1, 1, 3), (1, 2, 2)):
        experts.segment(1, 2, 3, CPU)
        found, other = experts.segment(expert, start, length, CPU)
        assert torch.equal(found, experts.trajectories[expert].segment(start, length)[0])
        assert other.basis.shape == (P, length + 1)
    assert torch.equal(experts.segment(1, 2, 3, CPU)[1].basis, space.basis)
    assert len(experts._cache) == 1


def judged(accuracies: list[float], losses: list[float | None], classes: int = 10) -> list[str]:
    curve = [{"accuracy": a, "loss": b} for a, b in zip(accuracies, losses, strict=True)]
    return complaints({"curve": curve}, classes)


def test_a_healthy_expert_has_no_complaints() -> None:
    assert judged([0.1, 0.4, 0.5], [None, 2.0, 1.0]) == []
    assert judged([0.5, 0.8], [None, 0.6], classes=2) == []


def test_each_illness_is_named() -> None:
    assert "close to chance" in judged([0.1, 0.15], [None, 2.0])[0]
    assert "close to chance" in judged([0.5, 0.6], [None, 0.6], classes=2)[0]
    assert "fell by 20.0%" in judged([0.1, 0.6, 0.4], [None, 2.0, 1.0])[0]
    assert "loss rose" in judged([0.1, 0.5, 0.5], [None, 1.0, 1.1])[0]
    assert len(judged([0.1, 0.3, 0.15], [None, 1.0, 2.0])) == 3


def test_a_header_is_all_that_opening_reads(path: Path) -> None:
    write(path)
    found = open_trajectory(path)
    assert found == Trajectory(path, artifact.load(path).digest, found.meta)


def test_a_segment_that_was_prepared_is_the_same_to_the_bit(path: Path) -> None:
    write(path)
    plain, ahead = (Experts((open_trajectory(path),)) for _ in range(2))
    for start in (0, 3, 3, 1):
        ahead.prepare(0, start, 2, CPU)
        (first, space), (expected, span) = ahead.segment(0, start, 2, CPU), plain.segment(0, start, 2, CPU)
        assert torch.equal(first, expected)
        assert torch.equal(space.basis, span.basis)
    assert first.untyped_storage().nbytes() == first.numel() * 4  # not a view that keeps the whole segment


def test_a_prepared_segment_that_nobody_asks_for_is_forgotten(path: Path) -> None:
    write(path)
    experts = Experts((open_trajectory(path),))
    experts.prepare(0, 0, 2, CPU)
    experts.segment(0, 1, 2, CPU)
    wait_for_segments()
    experts.prepare(0, 4, 2, CPU)
    assert len(experts._ahead) == 1
    experts.segment(0, 4, 2, CPU)
    assert not experts._ahead


def test_what_fails_beside_is_raised_where_the_segment_is_used(path: Path) -> None:
    write(path)
    experts = Experts((open_trajectory(path),))
    before = experts.segment(0, 0, 2, CPU)
    path.unlink()
    experts.prepare(0, 1, 2, CPU)
    wait_for_segments()
    assert experts.segment(0, 0, 2, CPU) is before
    with pytest.raises(ArtifactError, match="does not exist"):
        experts.segment(0, 1, 2, CPU)
    assert not any(thread.name == "esp-segment" for thread in threading.enumerate())


def wait_for_segments() -> None:
    for thread in threading.enumerate():
        if thread.name == "esp-segment":
            thread.join()
