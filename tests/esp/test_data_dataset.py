from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esp.data import store
from esp.data.dataset import Dataset, fingerprint
from esp.data.raw import Raw, statistics
from esp.errors import DataError, InputError
from esp.rng import Key


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return store.load("digits", tmp_path_factory.mktemp("cache"))


def make(images: torch.Tensor, labels: list[int], classes: tuple[str, ...] = ("a", "b")) -> Dataset:
    target = torch.tensor(labels)
    raw = Raw(images, target, images[:2], target[:2], classes, flips=False)
    mean, std = statistics(images)
    return Dataset(
        "tiny", images, target, images[:2], target[:2], classes, mean, std, "computed", False, fingerprint(raw)
    )


def test_digits_are_the_ones_of_scikit_learn(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    official = load_digits()
    assert digits.shape == (1, 16, 16)
    assert (len(digits.train_images), len(digits.test_images)) == (1442, 355)
    # The mean over each 2x2 block of a doubled image lies near the original pixel; the corner pixel is exact.
    first_zero = torch.from_numpy(official.images[official.target == 0][0])
    assert digits.train_labels[0] == official.target[0] == 0
    assert torch.equal(digits.train_images[0, 0, 0, ::15], (first_zero[0, ::7] * 255 / 16).round().to(torch.uint8))
    total = torch.bincount(digits.train_labels) + torch.bincount(digits.test_labels)
    assert total.tolist() == [int((official.target == digit).sum()) for digit in range(10)]


def test_digits_never_change(digits: Dataset) -> None:
    assert digits.fingerprint == "a767586c362b" + digits.fingerprint[12:]
    assert digits.statistics == "computed"
    assert not digits.flips
    pixels = digits.train_images.double() / 255
    assert digits.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-12)
    assert digits.std[0] == pytest.approx(float(pixels.std(correction=0)), abs=1e-12)


def test_normalised_training_pixels_have_mean_zero_and_deviation_one(digits: Dataset) -> None:
    images = digits.normalise(digits.train_images)
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-4


def test_normalise_and_denormalise_are_inverse_for_every_value() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(4, 3, 16, 16).contiguous()
    dataset = make(ramp, [0, 1, 0, 1])
    assert torch.equal(dataset.denormalise(dataset.normalise(ramp)), ramp)
    assert dataset.normalise(ramp[0]).shape == (3, 16, 16)


def test_normalise_of_floats_is_the_same_function_and_differentiable(digits: Dataset) -> None:
    pixels = (digits.train_images[:5].float() / 255).requires_grad_()
    normal = digits.normalise(pixels)
    assert torch.allclose(normal, digits.normalise(digits.train_images[:5]), atol=1e-6)
    [gradient] = torch.autograd.grad(normal.sum(), pixels)
    assert torch.allclose(gradient, torch.full_like(pixels, 1 / digits.std[0]))


def test_denormalise_clamps(digits: Dataset) -> None:
    wild = torch.tensor([-1e9, 1e9, float("nan"), float("inf")]).reshape(1, 1, 2, 2)
    assert digits.denormalise(wild).flatten().tolist() == [0, 255, 0, 255]


def test_class_indices_partition_the_training_set(digits: Dataset) -> None:
    indices = digits.class_indices()
    assert len(indices) == digits.num_classes == 10
    assert torch.cat(indices).sort().values.equal(torch.arange(len(digits.train_labels)))
    for label, members in enumerate(indices):
        assert bool((digits.train_labels[members] == label).all())
        assert bool((members.diff() > 0).all())


def test_held_out_is_stratified_disjoint_and_repeatable(digits: Dataset) -> None:
    held = digits.held_out(0.2, Key(3))
    assert len(held.train_images) + len(held.test_images) == len(digits.train_images)
    for label, members in enumerate(digits.class_indices()):
        assert int((held.test_labels == label).sum()) == round(0.2 * len(members))
    known = {image.numpy().tobytes() for image in digits.train_images}
    train = {image.numpy().tobytes() for image in held.train_images}
    test = {image.numpy().tobytes() for image in held.test_images}
    assert train | test == known
    assert not train & test
    assert torch.equal(held.test_images, digits.held_out(0.2, Key(3)).test_images)
    assert not torch.equal(held.test_images, digits.held_out(0.2, Key(4)).test_images)
    assert (held.name, held.fingerprint, held.split) == ("digits", digits.fingerprint, "held-out 0.2")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_held_out_refuses_a_fraction_out_of_range(digits: Dataset, fraction: float) -> None:
    with pytest.raises(InputError, match="cannot hold out"):
        digits.held_out(fraction, Key(0))


def test_held_out_keeps_one_image_on_either_side() -> None:
    dataset = make(torch.arange(4 * 4, dtype=torch.uint8).reshape(4, 1, 2, 2), [0, 0, 1, 1])
    for fraction in (0.01, 0.99):
        held = dataset.held_out(fraction, Key(0))
        assert torch.bincount(held.train_labels).tolist() == torch.bincount(held.test_labels).tolist() == [1, 1]
    with pytest.raises(DataError, match="class 'b' has one training image"):
        make(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), [0, 0, 1]).held_out(0.5, Key(0))


def test_fingerprint_depends_on_pixels_labels_shape_and_class_names() -> None:
    images = torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2)
    base = make(images, [0, 1, 0, 1]).fingerprint
    changed = images.clone()
    changed[3, 0, 1, 1] += 1
    others = [
        make(changed, [0, 1, 0, 1]),
        make(images, [0, 1, 1, 0]),
        make(images.reshape(4, 1, 1, 4), [0, 1, 0, 1]),
        make(images, [0, 1, 0, 1], ("b", "a")),
    ]
    assert make(images.clone(), [0, 1, 0, 1]).fingerprint == base
    assert len({base, *(other.fingerprint for other in others)}) == 5


def test_statistics_are_exact_per_channel_and_never_zero() -> None:
    images = torch.randint(0, 256, (5000, 2, 3, 3), dtype=torch.uint8, generator=Key(1).generator())
    images[:, 1] = 7
    mean, std = statistics(images)
    assert mean == pytest.approx((float(images[:, 0].double().mean() / 255), 7 / 255), abs=1e-12)
    assert std == pytest.approx((float((images[:, 0].double() / 255).std(correction=0)), 1 / 255), abs=1e-12)


def test_loading_does_not_copy_the_images(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")

    def anonymous() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon"))

    from safetensors.torch import save_file

    images = torch.randint(0, 256, (64_000, 1, 32, 32), dtype=torch.uint8)
    labels = torch.arange(64_000) % 2
    tensors = {
        "train_images": images,
        "train_labels": labels,
        "test_images": images[:2].clone(),
        "test_labels": labels[:2].clone(),
    }
    save_file(tensors, tmp_path / "big.safetensors")
    store.fetch(f"tensors:{tmp_path / 'big.safetensors'}", tmp_path / "cache")
    before = anonymous()
    dataset = store.load(f"tensors:{tmp_path / 'big.safetensors'}", tmp_path / "cache")
    assert anonymous() - before < 16 * 1024  # KiB, of 64 MiB
    assert torch.equal(dataset.train_images, images)
