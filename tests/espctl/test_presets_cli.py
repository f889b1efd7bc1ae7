"""`--preset` of condense and methods: what is stored, what is one run, and what a diverged run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esp import artifact
from esp.divergence import is_sound
from esp.errors import DivergedError
from esp.methods import METHODS
from espctl.jobs.worker import _Clock, _Run
from espctl.services.condense import Prepared, Request, prepare
from espctl.services.project import Project

SHORT = "condense -d digits --ipc 1 --set real_batch=4"


def prepared(tmp_path: Path, method: str, ipc: int = 1, **request: Any) -> Prepared:
    project = Project.open({"home": tmp_path, "condense.method": method, "condense.network": "convnet3,width=4"})
    return prepare(project, Request("digits", ipc, request.pop("options", {}), **request))


def asked(found: Prepared) -> dict[str, Any]:
    request: dict[str, Any] = found.described["request"]
    return request


def test_a_preset_fills_the_options_and_set_changes_them(tmp_path: Path) -> None:
    paper = asked(prepared(tmp_path, "dc", 10))
    assert (paper["preset"], paper["preset_base"], paper["preset_origin"]) == ("paper", "paper", "proposed")
    assert [paper["method_options"][name] for name in ("steps", "outer", "inner")] == [10_000, 10, 50]
    assert paper["changed_options"] == {}
    quick = asked(prepared(tmp_path, "dc", 10, preset="quick"))
    assert (quick["preset"], quick["method_options"]["steps"], quick["changed_options"]) == ("quick", 2_000, {})
    custom = asked(prepared(tmp_path, "dc", 10, preset="quick", options={"steps": "50", "batch": "256"}))
    assert (custom["preset"], custom["preset_base"], custom["changed_options"]) == ("custom", "quick", {"steps": 50})
    stored = asked(prepared(tmp_path, "dc", 10, preset="quick", parametrisation="latent"))
    assert (stored["preset"], stored["changed_options"]) == ("custom", {})
    space = asked(prepared(tmp_path, "dc", 10, space="zca"))
    assert (space["preset"], space["space"], space["changed_options"]) == ("custom", "zca", {})


def test_the_same_values_are_one_run_however_they_were_asked_for(tmp_path: Path) -> None:
    quick = prepared(tmp_path, "dm", preset="quick")
    spelled = prepared(tmp_path, "dm", options={"steps": "2000"})
    assert quick.key == spelled.key
    assert (asked(quick)["preset"], asked(spelled)["preset"]) == ("quick", "custom")
    paper = prepared(tmp_path, "dm")
    back = prepared(tmp_path, "dm", preset="quick", options={"steps": "20000"})
    assert paper.key == back.key != quick.key
    assert asked(back) == asked(paper)  # values that are the paper's are called so
    assert prepared(tmp_path, "random").key == prepared(tmp_path, "random", preset="quick").key


def test_a_run_made_before_is_found_under_another_preset(project: Any) -> None:
    made = project(f"{SHORT} -m dm --preset quick --set steps=2 --json").json
    assert made["preset"] == "custom"
    again = project(f"{SHORT} -m dm --set steps=2 --json").json
    assert again["id"] == made["id"]
    shown = project("runs show", made["id"]).out
    assert "custom" in shown
    assert "quick" in shown


def test_methods_show_resolves_a_preset(project: Any) -> None:
    found = project("methods show esp --preset quick -d cifar10 --ipc 10 --json").json
    assert (found["preset"], found["options"]["steps"], found["options"]["beta"]) == ("quick", 2_000, 1e-5)
    assert found["experts"] == [20, 30]
    mtt = project("methods show mtt -d cifar10 --ipc 1 -n convnet3 --json").json
    assert (mtt["origin"], mtt["space"], mtt["options"]["start_max"]) == ("published", "zca", 1)
    text = project("methods show mtt -d cifar10 --ipc 1 -n convnet3").out
    assert "published" in text
    assert "zca" in text
    assert "100 of 50 epochs" in text


def test_methods_ls_names_year_needs_and_presets(project: Any) -> None:
    rows = {row["name"]: row for row in project("methods ls --json").json}
    assert rows.keys() == METHODS.keys()
    assert rows["mtt"]["year"] == 2022
    assert rows["random"]["year"] is None
    assert rows["kfs"]["only"] == "latent"
    assert all(row["presets"] == ["paper", "quick"] for row in rows.values())


@pytest.mark.parametrize(
    ("words", "says", "hint", "code"),
    [
        ("condense -d digits --ipc 1 -m dm --preset fast", "unknown preset 'fast'", "quick", 1),
        ("methods show dm --preset fast -d digits --ipc 1", "unknown preset 'fast'", "known", 1),
        ("methods show dm --preset quick", "of a data set and a number of images", "--ipc", 2),
        ("methods show dm -d digits", "of a data set and a number of images", "--ipc", 2),
        ("methods show dm -d digit --ipc 1", "unknown data set 'digit'", "digits", 1),
        ("methods show dm -d digits --ipc 0", "0 images per class", "--ipc 1", 1),
    ],
)
def test_what_makes_no_sense_is_said(project: Any, words: str, says: str, hint: str, code: int) -> None:
    done = project(words, code=code)
    assert says in done.err
    assert hint in done.err
    assert "Traceback" not in done.err


ABSURD = {"kfs": "lr_codes", "esp": "lr_codes"}
LEARNING = [name for name in METHODS if name not in ("random", "herding", "kcenter")]
TINY = {
    "cafe": "outer=2 inner=1 test_batch=2 real_batch=4", "dc": "real_batch=4", "dsa": "real_batch=4",
    "dm": "real_batch=4", "esp": "real_batch=4 segment=2 start_max=1", "idc": "real_batch=4 train_images=8",
    "kfs": "real_batch=4 decoder_pretrain=0", "kip": "targets=20", "mtt": "student_steps=2 start_max=1",
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNING)
def test_an_absurd_rate_on_digits_fails_with_the_option_to_lower(finished: Any, tmp_path: Path, name: str) -> None:
    project = finished.copy(tmp_path / "project")
    option = ABSURD.get(name, "lr_pixels")
    sets = [word for pair in f"steps=9 {option}=1e30 {TINY[name]}".split() for word in ("--set", pair)]
    done = project("condense -d digits --ipc 1 -m", name, *sets, code=1)
    assert "diverged" in done.err
    assert f"--set {option}=..." in done.err.replace("\n", " ")
    [run] = project("runs ls state=failed --json").json
    checkpoint = artifact.load(project.home / run["folder"] / "checkpoint.safetensors")
    assert is_sound(checkpoint.tensors)
    assert json.loads((project.home / run["folder"] / "request.json").read_text())["request"]["preset"] == "custom"


class _Sticky:
    """Stands for a generator that has just raised, with an earlier sound state."""

    def __init__(self, bad: dict[str, torch.Tensor], good: dict[str, torch.Tensor]) -> None:
        self.bad, self.good, self.count = bad, good, 0

    def __iter__(self) -> _Sticky:
        return self

    def __next__(self) -> Any:
        self.count += 1
        if self.count == 1:
            return self.bad, {}
        error = DivergedError("step 20 diverged", "")
        error.state = self.good
        raise error


class _Whole:
    """A task that is never short of memory."""

    chunk = 1

    def chunked(self, _: int) -> _Whole:
        return self


def test_a_bad_state_never_replaces_a_good_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    good = {"set.pixels": torch.ones(2, 3), "step": torch.tensor(10)}
    bad = {"set.pixels": torch.full((2, 3), torch.nan), "step": torch.tensor(19)}
    run = _Run(tmp_path, "k", _Whole(), _Clock(), 0.0, 100, None)  # type: ignore[arg-type]
    with pytest.raises(DivergedError):
        run.advance(_Sticky(bad, good), lambda *_: None)
    kept = artifact.load(tmp_path / "checkpoint.safetensors")
    assert torch.equal(kept.tensors["set.pixels"], good["set.pixels"])
    assert kept.meta["step"] == 10
