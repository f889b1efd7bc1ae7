"""`espctl data`: what it prints, what it writes, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from esp.data import DATASETS
from espctl.cli import run
from espctl.services.project import Project
from espctl.store.experts import list_datasets


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_set(path: Path, spoil: bool = False) -> str:
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 6, 5), dtype=np.uint8)
    if spoil:
        images[1:3] = images[0]
        images[4] = 7
    labels = np.array([0] * 8 + [1] * 4) if not spoil else np.array([0] * 10 + [1] * 2)
    np.savez(path, train_images=images, train_labels=labels, test_images=images[[0, 11]], test_labels=labels[[0, 11]])
    return f"tensors:{path}"


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_every_known_set_is_listed_before_anything_is_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "ls", "--json"]) == 0
    rows = printed(capsys)
    assert [row["name"] for row in rows] == sorted(DATASETS)
    assert not any(row["converted"] for row in rows)
    assert run(["data", "ls"]) == 0
    assert "built in" in capsys.readouterr().out
    assert list(home.iterdir()) == []


def test_fetch_converts_records_and_describes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "fetch", "digits"]) == 0
    out = capsys.readouterr().out
    assert "1442 (140 to 147 per class)" in out
    assert "1x16x16" in out
    assert run(["data", "info", "digits", "--json"]) == 0
    found = printed(capsys)
    assert found["path"] == str(home / "data" / "digits.safetensors")
    [row] = list_datasets(Project.open({}).store)
    assert (row.name, row.fingerprint, row.path) == ("digits", found["fingerprint"], "data/digits.safetensors")
    assert (row.channels, row.height, row.width, row.classes, row.train, row.test) == (1, 16, 16, 10, 1442, 355)


def test_a_set_of_ones_own_is_listed_after_it_was_used(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = own_set(home / "mine.npz")
    assert run(["data", "info", "tensors:mine.npz", "--json"]) == 0
    assert printed(capsys)["name"] == name
    assert run(["data", "ls", "--json"]) == 0
    row = printed(capsys)[-1]
    assert (row["name"], row["converted"], row["train"], row["shape"]) == (name, True, 12, [3, 6, 5])


def test_check_finds_a_flipped_bit_and_oddities(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_set(home / "mine.npz", spoil=True)
    assert run(["data", "check"]) == 0
    assert "no data set was converted yet" in capsys.readouterr().err
    assert run(["data", "fetch", "digits"]) == run(["data", "fetch", "tensors:mine.npz"]) == 0
    capsys.readouterr()
    assert run(["data", "check", "--json"]) == 0
    digits, mine = printed(capsys)
    assert (digits["problem"], digits["oddities"]) == ("", [])
    assert mine["oddities"] == [
        "2 training images are copies of other training images",
        "2 test images are copies of training images",
        "1 training images have one colour",
        "classes have between 2 and 10 training images",
    ]
    path = home / "data" / "digits.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run(["data", "check"]) == 1
    assert "damaged: " in capsys.readouterr().out
    assert run(["data", "check", "tensors:mine.npz"]) == 0
    assert run(["data", "info", "digits"]) == 1
    assert "hint: run: espctl data fetch digits" in capsys.readouterr().err
    assert run(["data", "fetch", "digits", "-q"]) == run(["data", "check"]) == 0


def test_a_damaged_header_is_listed_and_checked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "fetch", "digits"]) == 0
    (home / "data" / "digits.safetensors").write_bytes(b"\0" * 50)
    capsys.readouterr()
    assert run(["data", "ls", "--json"]) == 0
    row = next(row for row in printed(capsys) if row["name"] == "digits")
    assert not row["converted"]
    assert "digits.safetensors" in row["damage"]
    assert run(["data", "check"]) == 1


def test_show_draws_one_row_for_each_class(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_set(home / "mine.npz")
    assert run(["data", "show", "tensors:mine.npz", "-o", "folder/mine.png", "--json"]) == 0
    made = printed(capsys)
    assert made["images"] == 12  # eight and four; the shorter row is filled up
    with Image.open(home / "folder" / "mine.png") as picture:
        assert picture.size == (made["width"], made["height"])
        first = np.asarray(picture)
    for arguments, same in ((["--seed", "3"], False), (["--test"], False), ([], True)):
        assert run(["data", "show", "tensors:mine.npz", "-o", "again.png", *arguments]) == 0
        with Image.open("again.png") as picture:
            assert np.array_equal(np.asarray(picture), first) == same
    assert run(["data", "show", "digits", "--per-class", "2"]) == 0
    assert (home / "digits.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["fetch", "cifar11"], "unknown data set 'cifar11'", "did you mean 'cifar10'?"),
        (["fetch", "cifar10", "--no-download"], "cifar10 is not in", "espctl data fetch cifar10"),
        (["info", "svhn"], "svhn is not in", "put train_32x32.mat"),
        (["check", "svhn"], "svhn is not in", "run: espctl data fetch svhn"),
        (["info", "folder:nothing"], "there is no folder", "train/<class>/<image>"),
        (["info", "tensors:nothing.npz"], "there is no file", "check the path"),
        (["show", "digits", "-o", "digits.jpg"], "digits.jpg is not a PNG file", "ends in .png"),
    ],
)
def test_mistakes_are_answered_with_a_remedy(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, hint: str
) -> None:
    assert run(["data", *arguments]) == 1
    error = capsys.readouterr().err
    assert f"error: {message}" in error.replace(f"{home}/", "")
    assert hint in error.split("hint: ")[1]
    assert "Traceback" not in error


def test_an_escape_sequence_in_a_class_name_is_shown_and_not_sent(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        for label in ("\x1b[31mred", "[bold]"):
            (home / "set" / split / label).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(home / "set" / split / label / "0.png")
    assert run(["data", "info", "folder:set"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out
    assert "\\x1b[31mred" in out
    assert "[bold]" in out
    assert run(["data", "show", "folder:set", "-o", "set.png"]) == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from espctl.cli import run; assert run(['data', 'fetch', '--help']) == 0; "
        "assert not {'torch', 'numpy', 'sqlalchemy', 'pydantic', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
