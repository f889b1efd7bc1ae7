"""`espctl networks`, and batch normalisation from the command line."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from esp.networks import NETWORKS
from espctl import cli

BATCH = "convnet3,width=8,norm=batch"
SIZES = {"esp": "--set segment=2 --set start_max=2 --set restart=5", "dc": "--set outer=3 --set inner=2", "dm": ""}
SETTINGS = """
[compute]
device = "cpu"
threads = 1
compile = "off"
[experts]
count = 1
epochs = 4
"""


@pytest.fixture(scope="module")
def batch_project(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Experts of a ConvNet with batch normalisation, and no settings of a network."""
    made = finished.copy(tmp_path_factory.mktemp("batch") / "project")
    (made.home / "espctl.toml").write_text(SETTINGS)
    made(f"experts build --dataset digits --network {BATCH}")
    return made


def test_ls_has_every_network_with_its_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["networks", "ls", "--json", "--home", str(tmp_path)]) == 0
    found = {entry["spec"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found.keys() == NETWORKS.keys()
    sizes = {name: found[name]["parameters"] for name in ("convnet3", "resnet10", "densenet121", "efficientnetv2s")}
    assert sizes == {
        "convnet3": 320_010,
        "resnet10": 4_903_242,
        "densenet121": 6_956_298,
        "efficientnetv2s": 20_190_298,
    }
    assert found["resnet10"]["options"] == {"width": 64, "norm": "batch"}
    assert found["resnet10"]["statistics"] == 2 * (64 + 2 * 64 + 3 * (128 + 256 + 512))
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_for_the_images_of_a_data_set(project: Any) -> None:
    found = project("networks show resnet10 -d digits --json").json
    assert (found["dataset"], found["shape"], found["parameters"]) == ("digits", [1, 16, 16], 4_903_242 - 2 * 9 * 64)
    shown = project("networks show convnet3,width=8 -d digits").out
    assert "digits 1x16x16, 10 classes" in shown
    assert project("networks show convnet3,width=8 -d digits --json").json["options"] == {
        "width": 8,
        "norm": "instance",
    }


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        ("networks show resnt10", "unknown network 'resnt10'", "did you mean 'resnet10'?"),
        ("networks show resnet10,norms=batch", "unknown option of network resnet10 'norms'", "did you mean 'norm'?"),
        ("networks show resnet10,norm=bach", "norm=bach is no normalisation", "choose one of instance, batch"),
        ("networks show convnet,depth=5 -d digits", "images of 16x16 are too small for 5 poolings", "at most 4"),
        ("networks ls -d digit", "unknown data set 'digit'", "did you mean 'digits'?"),
    ],
)
def test_what_is_wrong_is_a_sentence_with_a_remedy(project: Any, words: str, error: str, hint: str) -> None:
    found = project(words, code=1).err.splitlines()
    assert found[0] == f"error: {error}"
    assert hint in found[1]


@pytest.mark.parametrize("method", SIZES)
def test_a_condensation_through_batch_normalisation_goes_on_to_the_same_bytes(
    batch_project: Any, tmp_path: Path, launch: Any, wait_until: Any, method: str
) -> None:
    options = f"--set steps=12 --set real_batch=8 {SIZES[method]} --network {BATCH} --checkpoint-every 0.0001"
    command = f"condense --dataset digits --ipc 1 --method {method} {options}"
    whole, broken = (batch_project.copy(tmp_path / name) for name in ("whole", "broken"))
    before = whole.runs(method)
    whole(command)
    [run] = [path for path in whole.runs(method) if path not in before]
    here = broken.home / "runs" / run.name
    process = launch(broken, command)
    metrics = here / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 4, "the run does not start")
    process.kill()
    assert process.wait().code == -signal.SIGKILL
    assert not (here / "outcome.json").exists()
    broken("condense --resume", run.name)
    assert (here / "synthetic.safetensors").read_bytes() == (run / "synthetic.safetensors").read_bytes()


def test_networks_with_batch_normalisation_score_a_set(batch_project: Any) -> None:
    [run] = batch_project.runs("esp")
    for network, epochs in (("resnet10,width=8", 3), ("convnet3,width=16,norm=batch", 60)):
        words = f"evaluate {run.name} --network {network} --seeds 1 --epochs {epochs} --no-baseline --json"
        [found] = batch_project(words).json
        assert (found["n"], found["network"]) == (1, ",".join([network.split(",")[0], *sorted(network.split(",")[1:])]))
        assert 0 <= found["mean"] <= 1
