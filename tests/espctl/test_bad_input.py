"""What is wrong is said in one sentence with a remedy, nothing is lost, and the project stays usable."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from espctl.store.models import REVISIONS

GOOD = "--set segment=2 --set start_max=2 --set real_batch=8 --set steps=2"
SHORT = "condense --dataset digits --ipc 1 --method esp"
CONDENSE = f"condense --dataset digits --ipc 1 --method esp {GOOD}"


def complains(done: Any, message: str, hint: str) -> None:
    """One `error:` sentence with `message` in it, one `hint:` with `hint` in it, and nothing else but a place."""
    lines = done.err.splitlines()
    if len(lines) == 4:  # what was typed, and a mark below the letter where it is wrong
        assert lines[2].strip() == "^"
        assert len(lines[2]) <= len(lines[1]) + 1
        del lines[1:3]
    assert len(lines) == 2, done
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not lines[0].endswith(".")
    assert "unexpected" not in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]
    assert "Traceback" not in done.err


@pytest.fixture(scope="module")
def shared(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A project that many refused commands are given; at the end it must be as it was."""
    project = finished.copy(tmp_path_factory.mktemp("shared") / "project")

    def content() -> dict[str, bytes]:
        paths = [path for path in project.home.rglob("*") if path.is_file() and "espctl.db" not in path.name]
        return {str(path): path.read_bytes() for path in paths}

    before = content()
    yield project
    assert content() == before
    assert "none" in project("db check").out
    project(f"{CONDENSE} --seed 9")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("condense -d digist --ipc 1", "unknown data set 'digist'", "did you mean 'digits'?"),
        ("condense -d digits --ipc 1 -m epsp", "unknown method 'epsp'", "did you mean 'esp'?"),
        ("condense -d digits --ipc 1 -m os:getcwd", "'os:getcwd' is not a dataclass", "esp.core.Method"),
        ("condense -d digits --ipc 1 -m no.module:Name", "cannot be loaded", "check the module path"),
        ("condense -d digits --ipc 1 -n convnt3", "unknown network 'convnt3'", "did you mean 'convnet3'?"),
        (f"{CONDENSE} -n convnet3,widht=4", "unknown option of network convnet3 'widht'", "did you mean 'width'?"),
        (f"{CONDENSE} -n convnet3,width=x", "width=x of network convnet3", "like the default, 128"),
        (f"{CONDENSE} -n convnet3,width=0", "width of at least 1", "give positive numbers"),
        (f"{CONDENSE} --set stesp=3", "unknown option of method esp 'stesp'", "did you mean 'steps'?"),
        (f"{CONDENSE} --set beta=much", "beta=much of method esp", "--set beta="),
        (f"{CONDENSE} --set beta=nan", "beta=nan of method esp is not finite", "--set beta="),
        (f"{CONDENSE} --set lr_codes=-inf", "lr_codes=-inf of method esp is not finite", "--set lr_codes="),
        (f"{CONDENSE} --set proj_norm=l3", "proj_norm=l3 of method esp", "--set proj_norm="),
        (f"{CONDENSE} --set augmentation=colour", "unknown augmentation 'colour'", "did you mean 'color'?"),
        ("condense -d digits --ipc 1 -m dm --set steps=0", "steps=0 of method dm", "--set steps=1 or more"),
        ("condense -d digits --ipc 1 -m dm --set steps=-4", "steps=-4 of method dm", "--set steps=1 or more"),
        (f"{CONDENSE} -P pixls", "unknown parametrisation 'pixls'", "did you mean 'pixels'?"),
        (f"{CONDENSE} -P latent,cod=4", "unknown option of parametrisation latent 'cod'", "did you mean 'code'?"),
        (f"{CONDENSE} -P latent,code=400", "too few", "give more images per class"),
        (f"{CONDENSE} -P latent,code=64,hidden=32-16,decoders=6", "cannot hold 6 decoders", "narrower decoders"),
        ("condense -d digits --ipc 1 -m random -P latent", "only pixels can hold", "--parametrisation pixels"),
        ("condense -d digits --ipc 0 -m random", "0 images per class", "--ipc 1 or more"),
        ("condense -d digits --ipc -2 -m random", "-2 images per class", "--ipc 1 or more"),
        ("condense -d digits --ipc 141 -m random", "more than the smallest class of digits has (140)", "--ipc 140"),
        ("condense -d digits --ipc 1 -m random --device cuda:99", "CUDA", "--device cpu"),
        ("condense -d digits --ipc 1 -m random --device tpu", "'tpu'", "give it another value"),
        (f"{SHORT} --set segment=5", "has 4 epochs, but segments of 5 were asked", "shorten the segment"),
        (
            f"{SHORT} --set segment=2 --set start_max=3",
            "start_max=3 plus segment=2 is more than the 4 epochs",
            "start_max=2",
        ),
        (f"{CONDENSE} -n convnet3,width=8", "no experts of convnet3,width=8 on digits", "espctl experts build"),
        (f"{CONDENSE} --experts digits-a", "unknown store of experts 'digits-a'", "digits-a76758"),
        (f"{CONDENSE} --expert-count 3", "3 experts were asked, there are 2", "--count 3"),
        ("condense --resume nothing", "there is no run 'nothing'", "espctl runs ls"),
        ("condense --resume esp-", "is finished", "espctl runs show"),
        ("experts build -d digits -n convnet9", "unknown network 'convnet9'", "did you mean 'convnet"),
        ("experts build -d digits --lr nan", "nan", "another value"),
        ("experts build -d digits --dtype float61", "'float61'", "another value"),
        ("experts build -d digits -c 1000 -e 999999999", "GB free", "free some space"),
        ("experts show 9", "expert '9' is unknown", "/1"),
        ("experts verify digist", "unknown store of experts 'digist'", "digits-a76758"),
        ("experts rm digist --yes", "unknown store of experts 'digist'", "digits-a76758"),
        ("experts ls -d digist", "unknown data set 'digist'", "did you mean 'digits'?"),
        ("evaluate nothing", "there is no run 'nothing'", "espctl runs ls"),
        ("evaluate esp- -p das", "unknown protocol 'das'", "did you mean 'dsa'?"),
        ("evaluate esp- -p dsa@many", "does not say a number of epochs", "dsa@300"),
        ("evaluate esp- -n convnet5", "unknown network 'convnet5'", "did you mean 'convnet"),
        ("evaluate esp- -n convnet,depth=5", "too small for 5 poolings", "at most 4"),
        ("runs show nothing", "there is no run 'nothing'", "espctl runs ls"),
        ("runs ls metod=esp", "unknown column 'metod'", "did you mean 'method'?"),
        ("runs ls method", "'method' is no filter", "COLUMN=VALUE"),
        ("runs ls ipc=one", "ipc cannot be 'one'", "whole number"),
        ("runs ls --sort agee", "unknown column 'agee'", "did you mean"),
        ("report table1 -d digist", "unknown data set 'digist'", "did you mean 'digits'?"),
        ("report table1 -d digits -p das", "unknown protocol 'das'", "did you mean 'dsa'?"),
        ("report table1 -d digits", "nothing has been scored on digits", "espctl evaluate RUN"),
        ("report table1 -d digits -f latx", "unknown format 'latx'", "did you mean 'latex'?"),
        ("report images nothing -o x.png", "there is no run 'nothing'", "espctl runs ls"),
        ("report images esp- -o x.jpg", "x.jpg is not a PNG file", "ends in .png"),
    ],
)
def test_a_command_that_cannot_work_is_refused(shared: Any, words: str, message: str, hint: str) -> None:
    complains(shared(words, code=1), message, hint)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("condense -d digits", "a data set and a number of images per class"),
        ("condense --ipc 1", "a data set and a number of images per class"),
        (f"{CONDENSE} --set steps", "is not of the form KEY=VALUE"),
        (f"{CONDENSE} --set steps=3", "--set steps is given twice"),
        (f"{CONDENSE} --ipcc 3", "no such option: --ipcc"),
        ("condense -d digits --ipc one", "invalid value for '--ipc'"),
        ("evaluate esp- --seeds 0", "invalid value for '--seeds'"),
        ("evaluate", "missing argument"),
        ("experts build", "missing option"),
        ("report", ""),
    ],
)
def test_a_command_line_that_is_not_understood_exits_with_2(shared: Any, words: str, message: str) -> None:
    if words == "report":  # --home follows, which the group does not know
        message = "no such option: --home"
    complains(shared(words, code=2), message, "")


def bend(path: Path, place: int = -1) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("spoil", [bend, cut], ids=["altered", "truncated"])
def test_a_damaged_cache_is_noticed_before_it_is_used(project: Any, spoil: Callable[[Path], None]) -> None:
    spoil(project.home / "data" / "digits.safetensors")
    for words in (CONDENSE, "experts build -d digits -c 3", "evaluate esp- --epochs 2"):
        complains(project(words, code=1), "digits.safetensors", "espctl data fetch digits")
    assert "none" in project("db check").out
    project("data fetch digits --quiet")
    project(f"{CONDENSE} --seed 3")


@pytest.mark.parametrize("spoil", [bend, cut], ids=["altered", "truncated"])
def test_a_damaged_trajectory_is_noticed_and_the_run_can_be_resumed(
    project: Any, spoil: Callable[[Path], None]
) -> None:
    [store] = (project.home / "experts").iterdir()
    good = {path: path.read_bytes() for path in store.glob("*.safetensors")}
    for path in good:
        spoil(path)
    assert "2 experts, 2 damaged" in project("experts verify", code=1).out
    done = project(f"{CONDENSE} --seed 3 --set start_min=2", code=1)
    complains(done, "expert-000", "restore it from a copy")
    for path, data in good.items():
        path.write_bytes(data)
    failed = project("runs ls state=failed", "--json").json
    for run in failed:  # an altered row is found when it is read, which is in the middle of the run
        assert "checksum" in run["error"]
        project("condense --resume", run["id"])
    assert len(failed) == (1 if spoil is bend else 0)
    assert "none" in project("db check").out


@pytest.mark.parametrize("spoil", [bend, cut], ids=["altered", "truncated"])
def test_a_damaged_synthetic_set_is_not_scored(project: Any, spoil: Callable[[Path], None], tmp_path: Path) -> None:
    [run] = project.runs("esp")
    path = run / "synthetic.safetensors"
    spoil(path)
    complains(project("evaluate esp- --epochs 2", code=1), "synthetic.safetensors", "restore it from a copy")
    complains(project("report images esp- -o", str(tmp_path / "x.png"), code=1), "synthetic.safetensors", "restore it")
    assert not (tmp_path / "x.png").exists()


def test_the_synthetic_set_of_another_run_is_not_scored(project: Any) -> None:
    [run] = project.runs("esp")
    project(f"{CONDENSE} --seed 4")
    [other] = [path for path in project.runs("esp") if path != run]
    shutil.copy(other / "synthetic.safetensors", run / "synthetic.safetensors")
    complains(project("evaluate", run.name, "--epochs", "2", code=1), "is not the file that the run made", "restore")


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_not_resumed(project: Any) -> None:
    [run] = project.runs("esp")
    (run / "outcome.json").unlink()
    for path in project.home.glob("espctl.db*"):
        path.unlink()
    shutil.copy(run / "synthetic.safetensors", run / "checkpoint.safetensors")
    complains(project("condense --resume", run.name, code=1), "checkpoint.safetensors", "")
    cut(run / "checkpoint.safetensors")
    complains(project("condense --resume", run.name, code=1), "checkpoint.safetensors", "damaged")
    (run / "checkpoint.safetensors").unlink()
    before = (run / "synthetic.safetensors").read_bytes()
    project("condense --resume", run.name)
    assert (run / "synthetic.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["request.json", "outcome.json"])
def test_a_run_folder_with_a_damaged_file_is_named(project: Any, name: str) -> None:
    [run] = project.runs("esp")
    (run / name).write_text('{"id": ')
    words = "condense --resume esp-" if name == "request.json" else "evaluate esp- --epochs 2"
    with closing(sqlite3.connect(project.home / "espctl.db")) as database, database:
        database.execute("UPDATE runs SET state = ?", ["failed" if name == "request.json" else "finished"])
    complains(project(words, code=1), f"{name} is not valid JSON", "")
    assert "not read" in project("db upgrade").err


def test_experts_of_another_data_set_or_content_are_not_used(project: Any, tmp_path: Path) -> None:
    [store] = (project.home / "experts").iterdir()
    name = f"tensors:{own_set(tmp_path / 'mine.npz')}"
    words = f"condense --ipc 1 --method esp {GOOD} --experts {store.name} --dataset"
    complains(project(words, name, code=1), "which has convnet3,width=4 on digits", "espctl experts build")
    complains(project(f"{CONDENSE} -n convnet3,width=5 --experts {store.name}", code=1), "no experts of", "build")
    # The same name, but other images than the experts were trained on.
    project("experts build --count 1 --epochs 4 --dataset", name)
    own_set(tmp_path / "mine.npz", seed=1)
    complains(project(words.replace(f"--experts {store.name} ", ""), name, code=1), "no experts of", "build them")


def test_experts_that_changed_since_the_run_began_are_not_used(project: Any) -> None:
    [store] = (project.home / "experts").iterdir()
    [run] = project.runs("esp")
    (run / "outcome.json").unlink()
    with closing(sqlite3.connect(project.home / "espctl.db")) as database, database:
        database.execute("UPDATE runs SET state = 'interrupted'")
    shutil.copy(store / "expert-0000.safetensors", store / "expert-0001.safetensors")
    complains(project("condense --resume esp-", code=1), "has changed since this run was started", "restore the expert")


def own_set(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A small set of one's own with three classes; `changes` replace its arrays."""
    images = np.random.default_rng(seed).integers(0, 256, (30, 1, 16, 16), dtype=np.uint8)
    labels = np.arange(30) % 3
    arrays = {"train_images": images, "train_labels": labels, "test_images": images[:6], "test_labels": labels[:6]}
    np.savez(path, **{**arrays, **changes})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.arange(30) % 3 - 1}, "label"),
        ({"train_labels": np.arange(30) % 3 * 2}, "1 is not among them"),
        ({"test_labels": np.array([0, 1, 2, 0, 1, 7])}, "label"),
        ({"train_labels": np.zeros(30, dtype=int), "test_labels": np.zeros(6, dtype=int)}, "class"),
        ({"train_labels": np.arange(29) % 3}, "29"),
        ({"train_images": np.zeros((30, 16, 16), dtype=np.uint8)}, "train_images"),
        ({"train_images": np.full((30, 1, 16, 16), np.nan, dtype=np.float32)}, "train_images"),
    ],
)
def test_a_set_of_ones_own_that_makes_no_sense(
    project: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = own_set(tmp_path / "mine.npz", **changes)
    complains(project("condense --ipc 1 -m random --dataset", f"tensors:{path}", code=1), message, "")
    assert "none" in project("db check").out


@pytest.mark.parametrize("case", ["one class", "unreadable", "sizes", "empty", "truncated"])
def test_a_folder_of_images_that_makes_no_sense(project: Any, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "set"
    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / split / label / "0.png")
    spoilt = folder / "train" / "b" / "0.png"
    if case == "one class":
        shutil.rmtree(folder / "train" / "b")
        shutil.rmtree(folder / "test" / "b")
    elif case == "unreadable":
        spoilt.write_text("no image")
    elif case == "sizes":
        Image.new("RGB", (16, 8)).save(spoilt)
    elif case == "truncated":
        cut(spoilt)
    else:
        spoilt.unlink()
    named = {"one class": "one class", "empty": f"{folder}/train/b"}.get(case, str(spoilt))
    done = project("condense --ipc 1 -m random --dataset", f"folder:{folder}", code=1)
    complains(done, named.replace("one class", "class"), "")
    assert len(project.runs()) == 1


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[compute\n", "is not valid TOML", "line 1"),
        ("[compute]\nthreds = 1\n", "unknown setting 'compute.threds'", "did you mean 'compute.threads'?"),
        ("[comput]\nthreads = 1\n", "unknown setting 'comput.threads'", "did you mean 'compute.threads'?"),
        ("[compute]\nthreads = 'four'\n", "must be a whole number", "correct that line"),
        ("[experts]\nepochs = 0\n", "'experts.epochs'", "correct the file"),
    ],
)
def test_settings_that_cannot_be_used(project: Any, text: str, message: str, hint: str) -> None:
    (project.home / "espctl.toml").write_text(text)
    for words in ("runs ls", CONDENSE, "config show", "db check"):
        done = project(words, code=1)
        complains(done, message, "")
        assert hint in done.err
        assert str(project.home / "espctl.toml") in done.err


@pytest.mark.parametrize(
    ("revision", "message", "hint"),
    [("0000_before", "newer than this program", "the version of espctl that made it")],
)
def test_a_newer_schema(project: Any, revision: str, message: str, hint: str) -> None:
    with closing(sqlite3.connect(project.home / "espctl.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", [revision])
    for words in ("runs ls", CONDENSE, "evaluate esp-", "db upgrade"):
        complains(project(words, code=1), message, hint)
    with closing(sqlite3.connect(project.home / "espctl.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", [REVISIONS[-1]])
    assert "none" in project("db check").out


def test_a_database_that_is_none(project: Any) -> None:
    for path in project.home.glob("espctl.db*"):
        path.unlink()
    (project.home / "espctl.db").write_text("this is text, and long enough to be looked at as a database" * 20)
    complains(project("runs ls", code=1), "not an SQLite database", "espctl db rebuild")
    assert "made from the folders: 1 run," in project("db rebuild").out
    project("runs ls", code=0)


@pytest.mark.parametrize("name", ["runs", "experts", "data"])
def test_a_file_where_a_folder_must_be(project: Any, name: str) -> None:
    shutil.rmtree(project.home / name)
    (project.home / name).write_text("")
    words = "experts build -d digits -c 1 --quiet" if name == "experts" else "condense -d digits --ipc 1 -m random"
    complains(project(words, code=1), str(project.home / name), "")
    (project.home / name).unlink()
    project(words)
    assert "none" in project("db check").out


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that mounts a small disk; it skips the test where that is not allowed."""
    mounted = []

    def mount(megabytes: float) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        size = f"size={int(megabytes * 1024)}k"
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
        if os.getuid() or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a disk of its own can only be mounted by root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing(finished: Any, mount: Any) -> None:
    disk = mount(4)
    project = finished.copy(disk / "project")
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        free = shutil.disk_usage(disk).free
        file.write(b"\0" * (free - 24 * 1024))
    before = (project.home / "experts").stat().st_mtime_ns
    for words in (f"{CONDENSE} --seed 3 --checkpoint-every 0.0001", "experts build -d digits -c 40 -q"):
        done = project(words, code=1)
        assert "full" in done.err or "free" in done.err
        assert done.err.count("error: ") == done.err.count("hint: ") == 1
        assert "Traceback" not in done.err
    assert (project.home / "experts").stat().st_mtime_ns == before
    ballast.unlink()
    assert "none" in project("db check").out
    unfinished = [run["id"] for run in project("runs ls state!=finished", "--json").json]
    for run in unfinished:
        project("condense --resume", run)
    project(f"{CONDENSE} --seed 3")
    assert project("experts verify").out == "2 experts, 0 damaged\n"


def test_a_read_only_project_is_read_and_not_written(finished: Any, mount: Any) -> None:
    disk = mount(8)
    project = finished.copy(disk / "project")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert len(project("runs ls", "--json").json) == 1
    assert "esp-" in project("runs show esp-").out
    assert project("experts verify").out == "2 experts, 0 damaged\n"
    for words in (f"{CONDENSE} --seed 3", "experts build -d digits -c 3", "evaluate esp- --epochs 2", "db upgrade"):
        done = project(words, code=1)
        assert "read-only" in done.err, done
        assert done.err.splitlines()[-2].startswith("error: ")
        assert done.err.splitlines()[-1].startswith("hint: ")
        assert "unexpected" not in done.err
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    project(f"{CONDENSE} --seed 3")


def test_a_diverged_run_is_recorded_as_failed(project: Any) -> None:
    done = project("condense -d digits --ipc 1 -m dm --set steps=40 --set real_batch=8 --set lr_pixels=1e30", code=1)
    assert "diverged" in done.err
    [run] = project("runs ls state=failed", "--json").json
    assert "diverged" in run["error"]
    assert "diverged" in project("runs show", run["id"]).out
    complains(project("evaluate", run["id"], code=1), f"the run {run['id']} is failed", "--resume")
    complains(project("report images", run["id"], "-o", "x.png", code=1), "is failed", "--resume")
    assert "none" in project("db check").out


def test_a_run_whose_folder_is_gone_is_said_so_and_can_be_made_again(project: Any) -> None:
    [run] = project.runs("esp")
    words = json.loads((run / "request.json").read_text())["request"]["changed_options"]
    shutil.rmtree(run)
    complains(project("evaluate esp- --epochs 2", code=1), str(run), "")
    complains(project("condense --resume", run.name, code=1), "", "")
    again = [word for name, value in words.items() for word in ("--set", f"{name}={value}")]
    made = project("condense -d digits --ipc 1 -m esp --json", *again).json
    assert made["id"] == f"{run.name}-2"
    assert made["key"] == project("runs show", run.name, "--json", code=0).json["detail"]["run"]["key"]


def test_control_c_while_a_command_starts_leaves_no_traceback(project: Any, launch: Any) -> None:
    for delay in (0.01, 0.05, 0.1, 0.2):
        process = launch(project, f"{CONDENSE} --seed 8 --again")
        time.sleep(delay)
        process.kill(2)
        done = process.wait()
        assert done.code in (130, 0), done
        assert "Traceback" not in done.err
        if done.code == 130:
            assert done.err.splitlines()[-2:][0] == "error: interrupted"
    assert "none" in project("db check").out
    for run in project("runs ls state!=finished", "--json").json:
        project("condense --resume", run["id"])
