from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from esp import artifact
from esp.data import zca
from esp.data.dataset import Dataset
from esp.errors import ArtifactError, InputError, MismatchError, UnknownNameError
from esp.experts import Plan, build
from esp.networks.flat import Network
from esp.spaces import SPACES
from esp.training import Recipe
from esp.trajectory import Experts, open_trajectory

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def many(make_dataset: Callable[..., Dataset]) -> Dataset:
    """More images (120) than numbers in one (48)."""
    return make_dataset(each=40, tests=10, shape=(3, 4, 4))


def rows(images: Tensor) -> Tensor:
    return images.flatten(1).double()


def pixels(data: Dataset) -> Tensor:
    return rows(data.train_images) / 255


def test_whitened_training_images_have_the_identity_for_covariance_within_the_regulariser(
    many: Dataset, tmp_path: Path
) -> None:
    white = rows(zca.in_space(many, "zca", tmp_path).normalise(many.train_images))
    covariance = torch.cov(white.T)
    values, basis = torch.linalg.eigh(torch.cov(pixels(many).T))
    torch.testing.assert_close(basis.T @ covariance @ basis, (values / (values + 0.1)).diag(), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(white.mean(0), torch.zeros(48, dtype=torch.float64), atol=1e-5, rtol=0)


def test_zca_is_the_formula_of_its_source(many: Dataset, tmp_path: Path) -> None:
    x = pixels(many)
    left, values, _ = torch.linalg.svd(torch.cov(x.T))
    expected = (x - x.mean(0)) @ left @ (values + 0.1).rsqrt().diag() @ left.T
    found = zca.in_space(many, "zca", tmp_path).normalise(many.train_images)
    torch.testing.assert_close(rows(found), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("each", [40, 5], ids=["more images than numbers", "fewer"])
def test_kip_is_the_formula_of_its_source(make_dataset: Callable[..., Dataset], tmp_path: Path, each: int) -> None:
    data = make_dataset(each=each, shape=(3, 4, 4))
    count = len(data.train_images)
    x = rows(data.normalise(data.train_images.double() / 255))
    x = x - x.mean(1, keepdim=True)
    x = x / x.norm(dim=1, keepdim=True)
    moments = x.T @ x / count
    left, values, _ = torch.linalg.svd(moments + 0.1 * moments.trace() / 48 * torch.eye(48))
    factors = values.rsqrt()
    factors[count:] = 1.0
    found = zca.in_space(data, "kip", tmp_path).normalise(data.train_images)
    torch.testing.assert_close(rows(found), x @ left @ factors.diag() @ left.T, atol=2e-5, rtol=1e-4)


def test_the_inverse_of_zca_returns_the_image(many: Dataset, tmp_path: Path) -> None:
    white = zca.in_space(many, "zca", tmp_path)
    assert white.whitening is not None
    for images in (many.train_images, many.test_images):
        back = white.whitening.undo(white.normalise(images).flatten(1)).reshape(images.shape)
        torch.testing.assert_close(back, images / 255, atol=1e-4, rtol=0)
        assert torch.equal(white.denormalise(white.normalise(images)), images)


def test_the_inverse_of_kip_returns_the_image_but_for_mean_and_length(many: Dataset, tmp_path: Path) -> None:
    space = zca.in_space(many, "kip", tmp_path)
    assert space.whitening is not None
    back = space.whitening.undo(space.normalise(many.test_images).flatten(1))
    plain = many.normalise(many.test_images).flatten(1)
    plain = plain - plain.mean(1, keepdim=True)
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(back, plain), torch.ones(len(back)), atol=1e-4, rtol=0
    )
    assert space.denormalise(space.normalise(many.test_images)).dtype == torch.uint8


def test_an_image_of_one_colour_is_finite(many: Dataset, tmp_path: Path) -> None:
    blank = torch.full((1, 3, 4, 4), 77, dtype=torch.uint8)
    for name in ("zca", "kip"):
        assert zca.in_space(many, name, tmp_path).normalise(blank).isfinite().all()


def test_floats_are_taken_as_pixels_too_and_slopes_flow_through(many: Dataset, tmp_path: Path) -> None:
    for name in ("zca", "kip"):
        space = zca.in_space(many, name, tmp_path)
        x = (many.test_images[:2].double() / 255).requires_grad_()
        seen = space.normalise(x)
        assert seen.dtype == torch.float64
        torch.testing.assert_close(seen.float(), space.normalise(many.test_images[:2]), atol=1e-5, rtol=1e-4)
        assert torch.autograd.grad(seen.square().sum(), x)[0].abs().sum() > 0
    stacked = many.test_images[:6].reshape(2, 3, 3, 4, 4)
    torch.testing.assert_close(space.normalise(stacked).flatten(0, 1), space.normalise(many.test_images[:6]))


def test_a_whitening_is_computed_once_and_verified(many: Dataset, tmp_path: Path) -> None:
    first = zca.in_space(many, "zca", tmp_path)
    path = zca.location(many, "zca", tmp_path)
    stamp = path.stat().st_mtime_ns
    again = zca.in_space(many, "zca", tmp_path)
    assert path.stat().st_mtime_ns == stamp
    assert torch.equal(first.normalise(many.test_images), again.normalise(many.test_images))
    held = artifact.load(path)
    artifact.save(path, {**held.tensors, "matrix": held.tensors["matrix"] + 1}, {**held.meta, "fingerprint": "other"})
    with pytest.raises(ArtifactError, match="is not the zca whitening of tiny"):
        zca.in_space(many, "zca", tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError) as caught:
        zca.in_space(many, "zca", tmp_path)
    assert "it is computed again" in caught.value.hint


def test_a_space_is_known_by_its_name_and_can_be_left_again(many: Dataset, tmp_path: Path) -> None:
    assert many.space == "normalised"
    assert {zca.in_space(many, name, tmp_path).space for name in SPACES} == set(SPACES)
    back = zca.in_space(zca.in_space(many, "zca", tmp_path), "normalised", tmp_path)
    assert torch.equal(back.normalise(many.test_images), many.normalise(many.test_images))
    assert zca.in_space(many, "zca", tmp_path).held_out(0.2).space == "zca"
    with pytest.raises(UnknownNameError) as caught:
        zca.in_space(many, "zac", tmp_path)
    assert caught.value.hint == "did you mean 'zca'?"


def test_images_of_64_pixels_are_refused_with_the_size(many: Dataset, tmp_path: Path) -> None:
    large = replace(many, train_images=torch.zeros(6, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"12288x12288 numbers, 0\.6 GB each") as caught:
        zca.in_space(large, "zca", tmp_path)
    assert "normalised" in caught.value.hint


def test_experts_of_one_space_are_not_taken_for_those_of_another(
    data: Dataset, network: Network, tmp_path: Path
) -> None:
    white = zca.in_space(data, "zca", tmp_path)
    plain, whitened = (Plan(network, Recipe(1, 8, 0.01), space=space.space) for space in (data, white))
    assert plain.hash != whitened.hash
    assert "space" not in plain.describe()
    path = build(whitened, 0, white, tmp_path / "experts", CPU)
    with pytest.raises(MismatchError, match="pixel space normalised, the experts are of zca"):
        build(whitened, 1, data, tmp_path / "experts", CPU)
    with pytest.raises(MismatchError, match="made with another plan"):
        build(plain, 0, data, tmp_path / "experts", CPU)
    experts = Experts((open_trajectory(path),))
    experts.require(network.spec, data.fingerprint, 1, "zca")
    with pytest.raises(MismatchError, match="has space zca, not normalised"):
        experts.require(network.spec, data.fingerprint, 1)


def test_white_directions_cost_what_the_regulariser_says(many: Dataset, tmp_path: Path) -> None:
    whitening = zca.in_space(many, "zca", tmp_path).whitening
    assert whitening is not None
    torch.testing.assert_close(whitening.matrix @ whitening.inverse, torch.eye(48), atol=1e-4, rtol=0)
    torch.testing.assert_close(whitening.matrix, whitening.matrix.T, atol=1e-6, rtol=0)
    assert float(torch.linalg.eigvalsh(whitening.matrix.double())[-1]) <= 1 / math.sqrt(0.1) + 1e-4
