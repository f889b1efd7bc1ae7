from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esp import artifact, condensed
from esp.core import Task
from esp.errors import ArtifactError, MismatchError
from esp.parametrisation import decode_all, labels
from esp.rng import Key


@pytest.mark.parametrize("stored", ["pixels", "latent"])
def test_a_set_decodes_to_the_same_bits_after_a_round_trip(
    make_task: Callable[..., Task], tmp_path: Path, stored: str
) -> None:
    task = make_task(stored)
    parameters = task.parametrisation.init(Key(0), None)
    path = tmp_path / "synthetic.safetensors"
    digest = condensed.save(path, stored, task.parametrisation, parameters, task.data, {"method": "esp"})
    found = condensed.load(path)
    assert artifact.read_meta(path)[1] == digest
    assert found.parametrisation == task.parametrisation
    assert torch.equal(found.images(), decode_all(task.parametrisation, parameters))
    assert torch.equal(found.labels(), labels(task.parametrisation))
    assert len(found.images()) == len(found.labels())
    found.require(task.data)


def test_a_set_says_what_it_is(make_task: Callable[..., Task], tmp_path: Path) -> None:
    task = make_task("latent")
    made = task.parametrisation
    path = tmp_path / "synthetic.safetensors"
    condensed.save(path, "latent", made, made.init(Key(0), None), task.data, {"method": "esp", "seed": 3})
    meta = condensed.load(path).meta
    assert meta["parametrisation"] == {
        "name": "latent",
        "options": {"code": 8, "hidden": [2, 2], "decoders": 2},
        "classes": 3,
        "ipc": 2,
        "shape": [3, 8, 8],
    }
    assert (meta["dataset"], meta["fingerprint"]) == (task.data.name, task.data.fingerprint)
    assert (meta["mean"], meta["std"]) == (list(task.data.mean), list(task.data.std))
    assert meta["classes"] == list(task.data.classes)
    assert (meta["stored_numbers"], meta["budget_numbers"]) == (made.stored, 3 * 2 * 3 * 8 * 8)
    assert (meta["space"], meta["method"], meta["seed"]) == ("normalised", "esp", 3)


def test_a_set_of_other_data_or_of_another_pixel_space_is_refused(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    task = make_task()
    path = tmp_path / "synthetic.safetensors"
    parameters = task.parametrisation.init(Key(0), None)
    condensed.save(path, "pixels", task.parametrisation, parameters, task.data, {})
    with pytest.raises(MismatchError, match="condensed from another data set"):
        condensed.load(path).require(replace(task.data, fingerprint="0" * 64))
    condensed.save(path, "pixels", task.parametrisation, parameters, task.data, {"space": "zca"})
    with pytest.raises(MismatchError, match="pixel space 'zca', the data set in 'normalised'"):
        condensed.load(path).require(task.data)


def test_something_else_is_no_synthetic_set(tmp_path: Path) -> None:
    for meta in ({"kind": "trajectory"}, {}):
        artifact.save(tmp_path / "x", {"pixels": torch.ones(1)}, meta)
        with pytest.raises(ArtifactError, match="is not a synthetic set"):
            condensed.load(tmp_path / "x")


def test_a_damaged_set_is_refused(make_task: Callable[..., Task], tmp_path: Path) -> None:
    task = make_task()
    path = tmp_path / "synthetic.safetensors"
    condensed.save(path, "pixels", task.parametrisation, task.parametrisation.init(Key(0), None), task.data, {})
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ArtifactError, match="checksum of 'pixels'"):
        condensed.load(path)
