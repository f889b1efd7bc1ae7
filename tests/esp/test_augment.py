from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esp import augment
from esp.augment import OPERATIONS, STRATEGY, Stage, apply, draw_sequence, draw_single, parse
from esp.core import Task
from esp.data.dataset import Dataset
from esp.errors import UnknownNameError
from esp.networks.flat import Network
from esp.training import Recipe, Trainer

ALL = parse(STRATEGY)
NAMES = list(OPERATIONS)
SHAPES = [(3, 8, 8), (1, 16, 16), (2, 5, 9), (4, 12, 7)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(name: str, uniform: Tensor) -> augment.Draw:
    """The draw that applies `name` to every sample with `uniform` [n, 3]."""
    return (Stage(torch.full((len(uniform),), NAMES.index(name)), uniform),)


def different(rows: Tensor) -> int:
    return len({tuple(row) for row in rows.tolist()})


# The same operations, one image and one pixel at a time.


def color(x: Tensor, u: list[float]) -> Tensor:
    x = x + (u[0] - 0.5)
    grey = x.mean(0)
    x = torch.stack([(channel - grey) * (u[1] * 2) + grey for channel in x])
    return (x - x.mean()) * (u[2] + 0.5) + x.mean()


def crop(x: Tensor, u: list[float]) -> Tensor:
    _, height, width = x.shape
    reach = [int(0.125 * side + 0.5) for side in (height, width)]
    tx, ty = (math.floor(u[i] * (2 * reach[i] + 1)) - reach[i] for i in range(2))
    padded = torch.zeros(x.shape[0], height + 2, width + 2, dtype=x.dtype)
    padded[:, 1:-1, 1:-1] = x
    out = torch.empty_like(x)
    for i in range(height):
        for j in range(width):
            row, column = min(max(i + tx + 1, 0), height + 1), min(max(j + ty + 1, 0), width + 1)
            out[:, i, j] = padded[:, row, column]
    return out


def cutout(x: Tensor, u: list[float]) -> Tensor:
    sides = x.shape[1:]
    lengths = [int(0.5 * side + 0.5) for side in sides]
    offsets = [
        math.floor(u[i] * (side + (1 - length % 2)))
        for i, (side, length) in enumerate(zip(sides, lengths, strict=True))
    ]
    out = x.clone()
    for r in range(lengths[0]):
        for s in range(lengths[1]):
            row = min(max(offsets[0] - lengths[0] // 2 + r, 0), sides[0] - 1)
            column = min(max(offsets[1] - lengths[1] // 2 + s, 0), sides[1] - 1)
            out[:, row, column] = 0
    return out


def flip(x: Tensor, u: list[float]) -> Tensor:
    width = x.shape[2]
    return torch.stack([x[:, :, width - 1 - j] for j in range(width)], 2) if u[0] < 0.5 else x


def sampled(x: Tensor, matrix: list[list[float]]) -> Tensor:
    """Bilinear sampling at matrix (gx, gy), in coordinates from -1 to 1 over the image, zeros outside."""
    _, height, width = x.shape
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            gx, gy = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
            column = ((matrix[0][0] * gx + matrix[0][1] * gy + 1) * width - 1) / 2
            row = ((matrix[1][0] * gx + matrix[1][1] * gy + 1) * height - 1) / 2
            for r in (math.floor(row), math.floor(row) + 1):
                for c in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[:, i, j] += x[:, r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return out


def scale(x: Tensor, u: list[float]) -> Tensor:
    sx, sy = (1 / 1.2 + u[i] * (1.2 - 1 / 1.2) for i in range(2))
    return sampled(x, [[sx, 0], [0, sy]])


def rotate(x: Tensor, u: list[float]) -> Tensor:
    angle = math.radians(15) * (2 * u[0] - 1)
    return sampled(x, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


REFERENCE: dict[str, Callable[[Tensor, list[float]], Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_its_slow_reference(name: str, shape: tuple[int, int, int]) -> None:
    edges = torch.tensor([[0.0, 0, 0], [1, 1, 1]]).nextafter(torch.full((2, 3), 0.5))  # next to 0 and to 1
    uniform = torch.cat([edges, torch.tensor([[0.5, 0.5, 0.5]]), torch.rand(9, 3, generator=generator())]).double()
    images = torch.randn(len(uniform), *shape, generator=generator(1), dtype=torch.float64)
    found = apply(one(name, uniform), images)
    for x, u, y in zip(images, uniform.tolist(), found, strict=True):
        torch.testing.assert_close(y, REFERENCE[name](x, u), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_changes_images_and_keeps_their_type(name: str) -> None:
    images = torch.randn(20, 3, 8, 8, generator=generator())
    found = apply(one(name, torch.rand(20, 3, generator=generator(3))), images)
    assert found.dtype == torch.float32
    assert found.shape == images.shape
    assert not torch.equal(found, images)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    uniform = torch.rand(3, 3, generator=generator(2), dtype=torch.float64)
    images = torch.randn(3, 2, 4, 6, generator=generator(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply(one(name, uniform), x), (images,))


def test_every_operation_and_both_ends_of_every_range_are_drawn() -> None:
    stage = draw_single(ALL, 20_000, generator())[0]
    share = torch.bincount(stage.operation, minlength=6) / 20_000
    assert (share - 1 / 6).abs().max() < 0.02
    assert stage.uniform.min() < 0.001
    assert 0.999 < stage.uniform.max() < 1
    assert (stage.uniform.mean(0) - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("size", [1, 7, 256])
def test_samples_of_a_class_are_augmented_alike_whatever_the_batch(size: int) -> None:
    """Siamese: same operation, same parameters, for all samples of a class, alone or in any company."""
    for seed in range(8):
        draw = draw_single(ALL, 4, generator(seed))
        labels = torch.randint(4, (size,), generator=generator(seed + 100))
        images = torch.randn(size, 3, 8, 8, generator=generator(seed + 200), dtype=torch.float64)
        together = apply(draw, images, labels)
        for i in range(0, size, max(1, size // 9)):
            alone = apply(draw, images[i : i + 1], labels[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)
            name, uniform = NAMES[int(draw[0].operation[labels[i]])], draw[0].uniform[labels[i]].tolist()
            torch.testing.assert_close(together[i], REFERENCE[name](images[i], uniform), rtol=1e-6, atol=1e-6)


def test_classes_differ_in_operation_and_parameters() -> None:
    stage = draw_single(ALL, 50, generator())[0]
    assert len(set(stage.operation.tolist())) == 6
    assert different(stage.uniform) == 50


def test_a_training_batch_shares_the_operation_and_not_its_parameters() -> None:
    operations = set()
    for seed in range(40):
        stage = draw_single(ALL, 16, generator(seed), shared=True)[0]
        assert len(stage.operation) == 16
        assert len(set(stage.operation.tolist())) == 1
        assert different(stage.uniform) == 16
        operations.add(int(stage.operation[0]))
    assert operations == set(range(6))


def test_a_sequence_has_the_order_of_idc() -> None:
    middle = set()
    for seed in range(30):
        draw = draw_sequence(ALL, 5, generator(seed))
        names = [NAMES[int(stage.operation[0])] for stage in draw]
        assert all(len(set(stage.operation.tolist())) == 1 for stage in draw)
        assert all(different(stage.uniform) == 5 for stage in draw)
        assert [names[0], names[1], names[3]] == ["flip", "color", "cutout"]
        middle.add(names[2])
    assert middle == {"crop", "scale", "rotate"}
    short = draw_sequence(parse("color_crop"), 5, generator())
    assert [NAMES[int(stage.operation[0])] for stage in short] == ["color", "crop"]


def test_stages_are_applied_one_after_the_other() -> None:
    images = torch.randn(5, 3, 8, 8, generator=generator(), dtype=torch.float64)
    draw = draw_sequence(ALL, 5, generator(1))
    found = apply(draw, images)
    for i in range(5):
        expected = images[i]
        for stage in draw:
            expected = REFERENCE[NAMES[int(stage.operation[i])]](expected, stage.uniform[i].tolist())
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-6)


def test_a_set_that_must_not_flip_never_flips(
    make_dataset: Callable[..., Dataset], make_task: Callable[..., Task], network: Network
) -> None:
    assert parse(STRATEGY, flips=False) == tuple(name for name in ALL if name != "flip")
    digits = make_dataset(flips=False)
    assert "flip" not in make_task(data=digits).operations(STRATEGY)
    assert "flip" in make_task().operations(STRATEGY)
    images = torch.arange(64.0).reshape(1, 1, 8, 8).expand(64, 3, 8, 8)
    mirrored = []
    for flips in (False, True):
        trainer = Trainer(network, Recipe(1, 64, 0.1, augmentation="flip", mode="sequence"), flips, torch.device("cpu"))
        draw = draw_sequence(trainer._operations, 64, generator())
        mirrored.append(int((apply(draw, images)[:, 0, 0, 0] == 7).sum()))
    assert mirrored[0] == 0
    assert 16 < mirrored[1] < 48


def test_no_augmentation_leaves_the_images_as_they_are() -> None:
    images = torch.randn(3, 3, 8, 8)
    for strategy in ("none", ""):
        assert parse(strategy) == ()
        assert apply(draw_single(parse(strategy), 3, generator()), images) is images
        assert apply(draw_sequence(parse(strategy), 3, generator()), images) is images


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown augmentation 'colour'") as caught:
        parse("colour_crop")
    assert caught.value.hint == "did you mean 'color'?"


def test_drawing_and_applying_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw = draw_single(ALL, 6, generator()) + draw_sequence(ALL, 6, generator())
    apply(draw, torch.zeros(6, 3, 8, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_equal_generators_draw_alike() -> None:
    one, two = (draw_single(ALL, 9, generator(5))[0] for _ in range(2))
    assert torch.equal(one.operation, two.operation)
    assert torch.equal(one.uniform, two.uniform)
