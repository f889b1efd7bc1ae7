from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import esp
from esp import artifact, condensed
from esp.core import Task
from esp.data.dataset import Dataset
from esp.errors import ArtifactError, InputError, MismatchError
from esp.evaluation import Evaluator, protocol
from esp.networks.flat import build
from esp.rng import Key

NETWORK = "convnet3,width=4"
SHORT = "dsa@3"


@pytest.fixture
def task(make_task: Callable[..., Task]) -> Task:
    return make_task("latent")


@pytest.fixture
def run(task: Task, tmp_path: Path) -> Path:
    """The folder of a run with a synthetic set of decoded images."""
    made = task.parametrisation
    condensed.save(tmp_path / "synthetic.safetensors", "latent", made, made.init(Key(0), None), task.data, {})
    return tmp_path


@pytest.fixture
def soft(make_task: Callable[..., Task], tmp_path: Path) -> Path:
    """A synthetic set with label rows."""
    task = make_task()
    rows = torch.softmax(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), 1)
    path = tmp_path / "soft.safetensors"
    parameters = task.parametrisation.init(Key(0), None)
    condensed.save(path, "pixels", task.parametrisation, parameters, task.data, {}, {"labels": rows})
    return path


def test_a_set_is_a_data_set_of_pairs(run: Path, task: Task) -> None:
    data = esp.SyntheticDataset(run)
    assert len(data) == len(task.labels) == 72
    image, label = data[71]
    assert (image.dtype, tuple(image.shape), int(label)) == (torch.float32, (3, 8, 8), 2)
    assert data.classes == ("class 0", "class 1", "class 2")
    assert (data.mean, data.std, data.space) == (task.data.mean, task.data.std, "normalised")
    loader = torch.utils.data.DataLoader(data, batch_size=20)
    batches = list(loader)
    assert [len(images) for images, _ in batches] == [20, 20, 20, 12]
    assert torch.equal(torch.cat([labels for _, labels in batches]), task.labels)


def test_pixels_are_the_normalised_images_rounded(run: Path, task: Task) -> None:
    plain, pixels = esp.SyntheticDataset(str(run / "synthetic.safetensors")), esp.SyntheticDataset(run, pixels=True)
    assert pixels[0][0].dtype == torch.uint8
    assert torch.equal(pixels.images, task.data.denormalise(plain.images))


def test_learned_labels_are_rows(soft: Path) -> None:
    label = esp.SyntheticDataset(soft)[1][1]
    assert (label.dtype, tuple(label.shape)) == (torch.float32, (3,))
    assert float(label.sum()) == pytest.approx(1)


def test_a_network_is_trained_exactly_as_it_is_scored(run: Path, data: Dataset) -> None:
    found = esp.train_network(run, NETWORK, SHORT, seed=1, data=data)
    synthetic = condensed.load(run / "synthetic.safetensors")
    network = build(NETWORK, data.shape, 3)
    images, labels = synthetic.images(), synthetic.targets()
    scorer = Evaluator(network, protocol(SHORT), data, images, labels, torch.device("cpu"), 512, False)
    assert found.accuracy == scorer.score(1).accuracy
    assert found.accuracy == (found.predict(data.test_images) == data.test_labels).double().mean().item()
    assert found.classes == data.classes


def test_without_the_real_data_the_weights_are_the_same(run: Path, data: Dataset) -> None:
    with_data, alone = (esp.train_network(run, NETWORK, SHORT, data=given) for given in (data, None))
    assert torch.equal(with_data.theta, alone.theta)
    assert alone.accuracy is None
    assert torch.equal(with_data(data.test_images), alone(data.test_images))


def test_a_trained_network_takes_raw_images_in_any_number(run: Path, data: Dataset) -> None:
    found = esp.train_network(esp.SyntheticDataset(run), NETWORK, SHORT)
    logits = found(data.test_images)
    assert tuple(logits.shape) == (15, 3)
    assert torch.allclose(replace(found, chunk=4)(data.test_images), logits, atol=1e-5)
    assert torch.allclose(found(data.test_images / 255), logits, atol=1e-4)
    assert tuple(found(data.test_images[:0]).shape) == (0, 3)
    assert found.predict(data.test_images[:0]).tolist() == []


def test_soft_labels_change_what_is_learned(soft: Path, data: Dataset) -> None:
    stored = condensed.load(soft)
    hard = esp.train_network(replace(stored, soft=None), NETWORK, SHORT)
    assert not torch.equal(esp.train_network(stored, NETWORK, SHORT).theta, hard.theta)


def test_a_batch_normalised_network_predicts_alike_one_by_one(run: Path, data: Dataset) -> None:
    found = esp.train_network(run, "convnet3,norm=batch,width=4", SHORT, data=data)
    together = found(data.test_images)
    alone = torch.cat([found(image[None]) for image in data.test_images])
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_cannot_be_trained_is_refused(run: Path, data: Dataset, make_dataset: Callable[..., Dataset]) -> None:
    with pytest.raises(MismatchError, match="another data set"):
        esp.train_network(run, NETWORK, SHORT, data=make_dataset(seed=5))
    with pytest.raises(MismatchError, match="kip2nn needs its real data set"):
        esp.train_network(run, NETWORK, "kip2nn")
    with pytest.raises(InputError, match="chooses among its epochs"):
        esp.train_network(run, NETWORK, protocol(SHORT).with_selection(), data=data)
    with pytest.raises(ArtifactError, match="does not exist"):
        esp.SyntheticDataset(run / "nothing")


def test_a_set_that_does_not_name_its_flips_needs_its_data(run: Path, data: Dataset) -> None:
    path = run / "synthetic.safetensors"
    found = artifact.load(path)
    meta = {name: value for name, value in found.meta.items() if name != "flips"}
    artifact.save(path, {name: tensor.clone() for name, tensor in found.tensors.items()}, meta)
    with pytest.raises(ArtifactError, match="mirrored images"):
        esp.train_network(run, NETWORK, SHORT)
    assert esp.train_network(run, NETWORK, SHORT, data=data).accuracy is not None
