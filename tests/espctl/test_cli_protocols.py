"""`espctl protocols`, protocols of one's own, pixel spaces, learned rates and label rows, on a real small project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from esp import condensed
from esp.protocols import FIELDS, PROTOCOLS

OWN = """
[protocols.mine]
base = "dsa"
epochs = 3
checks = 3
augmentation = "none"
[protocols.taught]
base = "mtt@2"
"""
KIP = "condense --dataset digits --ipc 1 --method kip --set steps=2 --set targets=40"
MTT = "condense --dataset digits --ipc 1 --method mtt --set steps=3 --set student_steps=2 --set start_max=1"


@pytest.fixture
def own(project: Any) -> Any:
    """The project with two protocols of its own."""
    with (project.home / "espctl.toml").open("a") as file:
        file.write(OWN)
    return project


def made(done: Any) -> str:
    """The run that a command with --json made."""
    return str(done.json["id"])


def scores(project: Any, run: str) -> list[dict[str, Any]]:
    folder = project.home / "runs" / run / "evaluations"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_ls_has_the_built_in_ones_and_ones_own(own: Any) -> None:
    found = {entry["name"]: entry for entry in own("protocols ls", "--json").json}
    assert found.keys() == {*PROTOCOLS, "mine", "taught"}
    assert len({entry["hash"] for entry in found.values()}) == len(found)
    assert "your own, based on mtt@2" in own("protocols ls").out


def test_show_has_every_value_and_where_it_comes_from(own: Any) -> None:
    fields = {field["key"]: field for field in own("protocols show mine@7", "--json").json["fields"]}
    assert list(fields) == list(FIELDS)
    origins = {key: field["origin"] for key, field in fields.items()}
    assert origins["epochs"] == "mine@7"
    assert origins["augmentation"] == origins["checks"] == "espctl.toml"
    assert origins["lr"] == origins["momentum"] == "dsa"
    assert (fields["epochs"]["value"], fields["lr"]["value"]) == (7, 0.01)
    text = own("protocols show kip2nn").out
    assert "cosine" in text
    assert "grid search" in text


@pytest.mark.parametrize(
    ("table", "error", "hint"),
    [
        ('[protocols.mine]\nbase = "dsa"\nepoch = 3', "unknown key of protocol mine 'epoch'", "did you mean 'epochs'?"),
        ('[protocols.mine]\nbase = "das"', "unknown protocol 'das'", "did you mean 'dsa'?"),
        ('[protocols.dsa]\nbase = "idc"', "'dsa' is a built-in protocol", "another name"),
        ('[protocols.mine]\nbase = "dsa"\nlr = true', "'lr' of protocol 'mine' must be a finite number", "that line"),
    ],
)
def test_mistakes_in_the_settings_file_are_named(project: Any, table: str, error: str, hint: str) -> None:
    with (project.home / "espctl.toml").open("a") as file:
        file.write(table)
    for command in ("protocols ls", "protocols show dsa" if "[protocols.dsa]" in table else "protocols show mine"):
        done = project(command, code=1)
        assert error in done.err
        assert hint in done.err


def test_protocols_must_be_tables(project: Any) -> None:
    settings = project.home / "espctl.toml"
    settings.write_text('protocols = "mine"\n' + settings.read_text())
    assert "'protocols' in" in project("config show", code=1).err


def test_a_file_is_a_protocol_too(own: Any, tmp_path: Path) -> None:
    file = tmp_path / "short.toml"
    file.write_text('base = "mine"\nepochs = 2\nname = "brief"\n')
    run = made(own(KIP, "--json"))
    table = own(f"evaluate {run} --no-baseline --protocol {file}").out
    assert "protocol brief" in table
    (first, second) = scores(own, run)
    assert (first["protocol"], first["epochs"], first["protocol_hash"]) == ("brief", 2, second["protocol_hash"])
    assert own(f"protocols show {file}", "--json").json["hash"] == first["protocol_hash"]
    file.write_text('base = "mine"\nepochs = 2\nname = "taught"\n')
    assert "cannot call its protocol 'taught'" in own(f"evaluate {run} --protocol {file}", code=1).err
    assert "does not exist" in own(f"evaluate {run} --protocol {tmp_path}/none.toml", code=1).err
    file.write_text("base = \n")
    assert "is not valid TOML" in own(f"evaluate {run} --protocol {file}", code=1).err


def test_a_protocol_that_changed_under_its_name_is_another_row(own: Any) -> None:
    run = made(own(KIP, "--json"))
    first = own(f"evaluate {run} --no-baseline --protocol mine", "--json").json
    settings = own.home / "espctl.toml"
    settings.write_text(settings.read_text().replace("epochs = 3\nchecks", "epochs = 2\nchecks"))
    second = own(f"evaluate {run} --no-baseline --protocol mine", "--json").json
    assert [len(first), len(second)] == [1, 1]
    assert [first[0]["n"], second[0]["n"]] == [2, 2]
    assert {score["epochs"] for score in scores(own, run)} == {2, 3}


def test_the_rate_that_mtt_learned_travels_and_is_used(own: Any) -> None:
    run = made(own(MTT, "--json"))
    found = condensed.load(own.home / "runs" / run / "synthetic.safetensors")
    assert found.rate is not None
    done = own(f"evaluate {run} --protocol taught")
    assert "no learned learning rate" in done.err
    assert "random-" not in done.out
    assert {score["lr"] for score in scores(own, run)} == {found.rate}


def test_a_set_without_a_learned_rate_is_refused_before_anything_is_trained(own: Any) -> None:
    run = made(own(KIP, "--json"))
    done = own(f"evaluate {run} --protocol taught", code=1)
    assert "this set came without one" in done.err
    assert "fallback_lr" in done.err
    assert not scores(own, run)
    with (own.home / "espctl.toml").open("a") as file:
        file.write('[protocols.given]\nbase = "taught"\nfallback_lr = 0.02\n')
    own(f"evaluate {run} --protocol given")
    assert {score["lr"] for score in scores(own, run)} == {0.02}


def test_label_rows_are_counted_shown_and_trained_on(own: Any) -> None:
    done = own(f"{KIP} --set labels=learned")
    assert "100 over the budget by learned labels" in done.out
    again = own(f"{KIP} --set labels=learned", "--json")
    assert (again.json["stored_numbers"], again.json["budget_numbers"]) == (2660, 2560)
    run = made(again)
    found = condensed.load(own.home / "runs" / run / "synthetic.safetensors")
    assert found.targets().shape == (10, 10)
    own(f"evaluate {run} --no-baseline --protocol mine")
    assert len(scores(own, run)) == 2


def test_a_whitened_space_goes_from_experts_to_scores(own: Any) -> None:
    done = own(f"{MTT} --space zca", code=1)
    assert "in pixel space zca" in done.err
    assert "--space zca" in done.err
    own("experts build --dataset digits --space zca")
    stores = {(e["space"], e["path"].split("/")[-2]) for e in own("experts ls", "--json").json}
    assert {space for space, _ in stores} == {"normalised", "zca"}
    assert len(stores) == 2
    run, plain = made(own(f"{MTT} --space zca", "--json")), made(own(MTT, "--json"))
    assert run != plain
    requests = [json.loads((own.home / "runs" / r / "request.json").read_text())["request"] for r in (run, plain)]
    assert [request.get("space") for request in requests] == ["zca", None]
    assert condensed.load(own.home / "runs" / run / "synthetic.safetensors").space == "zca"
    own(f"evaluate {run} --protocol mine")
    baselines = [path for path in (own.home / "runs").glob("random-*") if scores(own, path.name)]
    spaces = [json.loads((path / "request.json").read_text())["request"].get("space") for path in baselines]
    assert spaces == ["zca"]  # what stands beside a whitened set is whitened as well


def test_spaces_are_refused_where_they_do_not_belong(own: Any, tmp_path: Path) -> None:
    idc = own("condense --dataset digits --ipc 1 --method idc --space zca", code=1)
    assert "between black and white" in idc.err
    assert "did you mean 'zca'?" in own(f"{KIP} --space zac", code=1).err
    store = own("experts build --dataset digits --space zca", "--json").json["store"]
    assert "in pixel space zca" in own(f"{MTT} --space normalised --experts {store}", code=1).err
    own(f"data show digits --space kip --output {tmp_path}/a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_the_choice_on_held_out_images_is_named_and_kept(own: Any) -> None:
    run = made(own(KIP, "--json"))
    words = "--protocol mine --select held-out --lr 0.01 --lr 0.1"
    done = own(f"evaluate {run} --no-baseline {words}")
    assert "protocol mine+held-out" in done.out
    assert "chosen on held-out training images" in done.out
    assert "best check" not in done.out
    for score in scores(own, run):
        assert score["best_accuracy"] is None
        assert score["lr"] in (0.01, 0.1)
        assert score["selected_epoch"] in (1, 2, 3)
    assert "something to choose them by" in own(f"evaluate {run} --protocol mine --lr 0.1", code=1).err
    assert "is no way to choose" in own(f"evaluate {run} --select best", code=2).err
