"""Exports, read back by what they are meant for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from esp import condensed
from esp.data.store import load as load_data
from espctl.services.exporting import plain as writers
from espctl.services.exporting.cards import licence, source
from espctl.services.exporting.export import _clamped, decode
from espctl.services.exporting.plain import folder_names


@pytest.fixture(scope="module")
def scored(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The finished run with two scores. Tests of this module only read it."""
    project = finished.copy(tmp_path_factory.mktemp("scored") / "project")
    project(f"evaluate {project.runs('esp')[0].name} --epochs 2 --no-baseline")
    return project


def stored(project: Any) -> condensed.Condensed:
    return condensed.load(project.runs("esp")[0] / "synthetic.safetensors")


def test_safetensors_hold_floats_and_pixels_and_load_as_a_data_set(scored: Any, tmp_path: Path) -> None:
    target = tmp_path / "set.safetensors"
    done = scored("export esp-digits --to safetensors --with-test --json", "--output", str(target)).json
    synthetic = stored(scored)
    assert (done["images"], done["test_images"], done["classes"]) == (220, 355, 10)
    assert done["bytes"] == target.stat().st_size
    with safe_open(target, framework="pt") as file:
        assert torch.equal(file.get_tensor("images"), synthetic.images())
        assert torch.equal(file.get_tensor("train_images"), synthetic.pixels())
        facts = json.loads(file.metadata()["export"])
    assert (facts["run"], facts["dataset"], facts["scores"][0]["n"]) == (done["run"], "digits", 2)
    loaded = load_data(f"tensors:{target}", tmp_path / "data")
    assert torch.equal(loaded.train_images, synthetic.pixels())
    assert torch.equal(loaded.train_labels, synthetic.labels())
    assert (len(loaded.test_images), loaded.classes, loaded.flips) == (355, tuple("0123456789"), False)


def test_npz_needs_no_pickle(scored: Any, tmp_path: Path) -> None:
    scored("export esp-digits --to npz", "--output", str(tmp_path / "set.npz"))
    with np.load(tmp_path / "set.npz", allow_pickle=False) as file:
        assert set(file.files) == {"images", "train_images", "train_labels", "classes", "mean", "std", "export"}
        again = (file["train_images"] / 255 - file["mean"][:, None, None]) / file["std"][:, None, None]
        assert np.abs(again - file["images"]).mean() < 0.02
        assert file["classes"].tolist() == list("0123456789")
        assert json.loads(str(file["export"]))["licence"].endswith("CC BY 4.0.")


def test_an_image_folder_is_a_data_set_again(scored: Any, tmp_path: Path) -> None:
    scored("export esp-digits --to imagefolder --with-test", "--output", str(tmp_path / "tree"))
    loaded = load_data(f"folder:{tmp_path / 'tree'}", tmp_path / "data")
    synthetic = stored(scored)
    assert torch.equal(loaded.train_images, synthetic.pixels())
    assert torch.equal(loaded.train_labels, synthetic.labels())
    assert len(loaded.test_images) == 355
    assert json.loads((tmp_path / "tree" / "classes.json").read_text())[3] == {"label": 3, "name": "3", "folder": "3"}


def test_a_data_card_says_what_the_set_is(scored: Any, tmp_path: Path) -> None:
    target = tmp_path / "card"
    scored("export esp-digits --to huggingface", "--output", str(target))
    text = (target / "README.md").read_text()
    head, body = text.removeprefix("---\n").split("\n---\n")
    assert "license: cc-by-4.0" in head.splitlines()
    assert "path: test" not in head
    assert "| Budget | 1 plain images per class = 2,560 numbers |" in body
    assert "| dsa@2 | convnet3,width=4 | " in body
    assert body.splitlines()[body.splitlines().index("| protocol | network | accuracy | n |") + 2].endswith(" | 2 |")
    assert "UCI" in body.partition("## Licence")[2]
    rows = [json.loads(line) for line in (target / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == stored(scored).labels().tolist()
    assert all((target / "train" / row["file_name"]).is_file() for row in rows)


def test_a_run_without_scores_says_so(finished: Any, tmp_path: Path) -> None:
    finished("export esp-digits --to huggingface", "--output", str(tmp_path / "card"))
    assert "The set was not evaluated." in (tmp_path / "card" / "README.md").read_text()


def test_clamping_is_counted() -> None:
    images = torch.tensor([[[[-1.0, 0.0], [0.0, 9.0]]]])
    assert _clamped(images, [0.5], [0.5], None) == 0.25  # -1 is black, 9 is beyond white


@pytest.mark.parametrize("form", ["npz", "imagefolder"])
def test_what_is_there_is_replaced_only_by_force(scored: Any, tmp_path: Path, form: str) -> None:
    target = tmp_path / "made"
    words = (f"export esp-digits --to {form}", "--output", str(target))
    scored(*words)
    assert "exists already" in scored(*words, code=1).err
    if target.is_dir():
        (target / "stale").touch()
    scored(*words, "--force")
    assert not (target / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_is_no_export_is_never_replaced(scored: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for form in ("imagefolder", "npz"):
        words = (f"export esp-digits --to {form} --force", "--output", str(tmp_path / "mine"))
        assert "choose another --output" in scored(*words, code=1).err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert (
        "in the way"
        in scored("export esp-digits --to imagefolder --force", "--output", str(tmp_path / "link"), code=1).err
    )


def test_an_empty_folder_is_a_place_for_an_export(scored: Any, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    scored("export esp-digits --to imagefolder", "--output", str(tmp_path / "new"))
    assert (tmp_path / "new" / "export.json").is_file()


def test_mistakes_are_named(scored: Any, tmp_path: Path) -> None:
    assert "did you mean 'npz'" in scored("export esp-digits --to nzp", code=1).err
    assert "there is no run 'dm'" in scored("export dm --to npz", code=1).err
    project = scored.copy(tmp_path / "project")
    (project.runs("esp")[0] / "synthetic.safetensors").write_bytes(b"no")
    assert "is not a readable" in project("export esp-digits --to npz", "--output", str(tmp_path / "x.npz"), code=1).err
    assert not (tmp_path / "x.npz").exists()


def test_it_works_without_the_data_set(scored: Any, tmp_path: Path) -> None:
    project = scored.copy(tmp_path / "project")
    shutil.rmtree(project.home / "data")
    project("export esp-digits --to npz", "--output", str(tmp_path / "x.npz"))
    assert list(project.home.glob("data/*")) == []


@given(st.lists(st.text(max_size=80), min_size=2, max_size=12))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_any_class_name_becomes_a_folder_in_the_order_of_labels(names: list[str]) -> None:
    folders = folder_names(names)
    assert len({folder.casefold() for folder in folders}) == len(names)
    assert list(folders) == sorted(folders)
    for folder in folders:
        assert folder.strip(" .") == folder != ""
        assert len(folder.encode()) < 255
        assert folder.isprintable()
        assert not set(folder) & set('/\\:*?"<>|')


def test_names_that_are_safe_stay_as_they_are() -> None:
    assert folder_names(["airplane", "maple tree", "zebra_2"]) == ("airplane", "maple tree", "zebra_2")
    assert folder_names([str(n) for n in range(11)])[:3] == ("00-0", "01-1", "02-2")
    assert folder_names(["../../etc", "con"]) == ("_.._etc", "_con")
    assert folder_names(["cat", "Cat"]) == ("0-cat", "1-Cat")


def test_soft_labels_and_strange_names_survive(scored: Any, tmp_path: Path) -> None:
    plain = decode(stored(scored), None)
    soft = torch.softmax(torch.randn(220, 10, generator=torch.Generator().manual_seed(0)), 1)
    names = ("../up", "a/b", "c", "d", "e", "f", "g", "h", "i", "j|<b>")
    changed = replace(plain, soft_labels=soft, labels=soft.argmax(1), classes=names)
    (tmp_path / "tree").mkdir()
    writers.write_huggingface(tmp_path / "tree", changed, {}, "card")
    listed = json.loads((tmp_path / "tree" / "classes.json").read_text())
    assert [entry["name"] for entry in listed] == list(names)
    rows = [json.loads(line) for line in (tmp_path / "tree" / "train" / "metadata.jsonl").read_text().splitlines()]
    assert torch.allclose(torch.tensor([row["soft_label"] for row in rows]), soft)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]
    with Image.open(tmp_path / "tree" / "train" / rows[7]["file_name"]) as image:
        assert np.array_equal(np.asarray(image), plain.pixels[7, 0].numpy())


def test_the_folder_of_ones_own_data_is_not_told() -> None:
    assert source("folder:/some/where/cats") == "folder:cats"
    assert source("cifar10") == "cifar10"
    assert licence("folder:/some/where/cats").identifier == "unknown"


def test_every_data_set_has_a_licence_line() -> None:
    from esp.data import DATASETS
    from espctl.services.exporting.cards import LICENCES

    assert LICENCES.keys() == DATASETS.keys()
