from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esp.errors import BudgetError, EspError, InputError, UnknownNameError
from esp.optim import Tensors
from esp.parametrisation import (
    Frame,
    Latent,
    Parametrisation,
    Pixels,
    build,
    decode_all,
    labels,
    options_of,
    parse_parametrisation,
)
from esp.rng import Key

CIFAR, TINY = (3, 32, 32), (3, 64, 64)
# Shape, classes, ipc; code numbers, decoder channels, decoder numbers, decoders, codes per class, numbers used, images.
TABLE = [
    (CIFAR, 10, 1, 192, (12, 8, 6), 2_609, 4, 10, 29_636, 400),
    (CIFAR, 10, 10, 512, (32, 16, 12), 11_871, 6, 46, 306_746, 2_760),
    (CIFAR, 10, 50, 1024, (64, 32, 16), 41_779, 6, 125, 1_530_674, 7_500),
    (CIFAR, 100, 1, 192, (12, 12, 8), 4_247, 6, 14, 294_282, 8_400),
    (CIFAR, 100, 10, 512, (32, 32, 16), 25_395, 6, 57, 3_070_770, 34_200),
    (TINY, 200, 1, 768, (12, 12, 8), 4_247, 6, 15, 2_329_482, 18_000),
    (TINY, 200, 10, 2048, (32, 32, 16), 25_395, 6, 59, 24_318_770, 70_800),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0][1]}px-{row[1]}classes-{row[2]}ipc")
def test_the_solved_sets_are_those_of_the_table(
    row: tuple[tuple[int, int, int], int, int, int, tuple[int, ...], int, int, int, int, int],
) -> None:
    shape, classes, ipc, code, channels, weights, decoders, units, used, images = row
    made = build("latent", Frame(classes, ipc, shape))
    assert isinstance(made, Latent)
    assert (made.code, *made.hidden) == channels
    assert (made.code_numbers, made.decoder_numbers, made.decoders, made.units) == (code, weights, decoders, units)
    assert made.stored == used <= made.frame.budget
    assert len(labels(made)) == images


sides = st.integers(1, 40)
frames = st.builds(Frame, st.integers(2, 30), st.integers(1, 30), st.tuples(st.integers(1, 4), sides, sides))


@given(frames)
def test_the_budget_is_never_exceeded_and_everything_is_counted(frame: Frame) -> None:
    try:
        made = build("latent", frame)
    except BudgetError:
        assert frame.budget < 300  # one channel each, the smallest decoder has 100 numbers and may take two fifths
        return
    tensors = made.init(Key(0), None)
    assert made.stored == sum(tensor.numel() for tensor in tensors.values()) <= frame.budget
    assert made.units >= 1
    images = made.decode(tensors, 0, 1)
    assert images.shape == (made.multiplicity, *frame.shape)
    assert images.isfinite().all()


@given(frames, st.integers(0, 20), st.tuples(st.integers(0, 9), st.integers(0, 9)), st.integers(0, 5))
def test_given_options_are_kept_and_the_budget_with_them(
    frame: Frame, code: int, hidden: tuple[int, int], decoders: int
) -> None:
    try:
        made = build("latent", frame, {"code": code, "hidden": list(hidden), "decoders": decoders})
    except (BudgetError, InputError):
        return
    assert isinstance(made, Latent)
    assert made.stored <= frame.budget
    assert not code or made.code == code
    assert not any(hidden) or made.hidden == hidden
    assert not decoders or made.decoders == decoders


@given(frames)
def test_pixels_are_the_budget(frame: Frame) -> None:
    made = build("pixels", frame)
    assert made.stored == frame.budget == frame.classes * frame.ipc * math.prod(frame.shape)
    assert (made.units, made.multiplicity) == (frame.ipc, 1)


def small(shape: tuple[int, int, int] = (3, 8, 8), ipc: int = 2) -> tuple[Latent, Tensors]:
    made = build("latent", Frame(3, ipc, shape), {"code": 4, "hidden": [3, 2], "decoders": 2})
    assert isinstance(made, Latent)
    return made, made.init(Key(1), None)


def decoded_slowly(made: Latent, tensors: Tensors, unit: int, decoder: int) -> Tensor:
    """One image, by torch's own modules."""
    x = tensors["codes"][unit : unit + 1]
    for stage in range(3):
        weight, bias = (tensors[f"decoders.{stage}.{name}"][decoder] for name in ("weight", "bias"))
        layer = nn.ConvTranspose2d(weight.shape[0], weight.shape[1], 4, stride=2, padding=1)
        layer.load_state_dict({"weight": weight, "bias": bias})
        x = layer(x).relu() if stage < 2 else layer(x)
    _, height, width = made.frame.shape
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[0, :, top : top + height, left : left + width].detach()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 12, 17), (2, 16, 5)], ids=str)
def test_images_come_in_the_order_class_code_decoder(shape: tuple[int, int, int]) -> None:
    made, tensors = small(shape, ipc=8)
    images, target = decode_all(made, tensors), labels(made)
    assert images.shape == (3 * made.units * 2, *shape)
    for place in range(0, len(images), 5):
        unit, decoder = divmod(place, 2)
        torch.testing.assert_close(images[place], decoded_slowly(made, tensors, unit, decoder), rtol=1e-5, atol=1e-6)
        assert target[place] == unit // made.units


@given(st.lists(st.integers(0, 200), max_size=4))
def test_chunks_decode_to_what_the_whole_decodes_to(cuts: list[int]) -> None:
    for made, tensors in (small(), (pixels := Pixels(Frame(3, 4, (1, 4, 4))), pixels.init(Key(0), None))):
        total = 3 * made.units
        edges = sorted({0, total, *(cut % total for cut in cuts)})
        parts = [made.decode(tensors, a, b) for a, b in pairwise(edges)]
        torch.testing.assert_close(torch.cat(parts), decode_all(made, tensors), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["pixels", "latent"])
def test_labels_are_balanced_and_ordered(name: str) -> None:
    made = build(name, Frame(7, 3, (3, 16, 16)))
    target = labels(made)
    assert torch.bincount(target).tolist() == [made.units * made.multiplicity] * 7
    assert torch.equal(target, target.sort().values)
    assert target.dtype == torch.int64


def test_a_decoded_set_has_no_graph_and_a_chunk_has_one() -> None:
    made, tensors = small()
    leaves = {name: value.requires_grad_() for name, value in tensors.items()}
    assert not decode_all(made, leaves).requires_grad
    slopes = torch.autograd.grad(made.decode(leaves, 0, 3 * made.units).square().sum(), list(leaves.values()))
    assert all(slope.abs().sum() > 0 for slope in slopes)


def test_noise_is_normal_and_decoders_start_like_those_of_torch() -> None:
    made = Latent(Frame(10, 10, (3, 32, 32)))
    tensors = made.init(Key(0), None)
    assert abs(float(tensors["codes"].mean())) < 0.01
    assert abs(float(tensors["codes"].std()) - 1) < 0.01
    channels = (made.code, *made.hidden, 3)
    for stage in range(3):
        layer = nn.ConvTranspose2d(channels[stage], channels[stage + 1], 4, stride=2, padding=1)
        for name, own in layer.named_parameters():
            found = tensors[f"decoders.{stage}.{name}"]
            assert found.shape == (made.decoders, *own.shape)
            bound = 1 / math.sqrt(channels[stage + 1] * 16)
            assert max(found.abs().max(), own.detach().abs().max()) <= bound
            assert found.abs().max() > 0.5 * bound
    pixels = Pixels(Frame(10, 10, (3, 16, 16))).init(Key(0), None)["pixels"]
    assert pixels.shape == (100, 3, 16, 16)
    assert abs(float(pixels.std()) - 1) < 0.01


@pytest.mark.parametrize("name", ["pixels", "latent"])
def test_a_key_decides_the_start(name: str) -> None:
    made = build(name, Frame(2, 2, (3, 16, 16)))
    one, same, other = (made.init(Key(seed), None) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name]) for name in one)


def test_pixels_start_from_a_copy_of_real_images() -> None:
    real = torch.randn(4, 3, 8, 8)
    pixels = Pixels(Frame(2, 2, (3, 8, 8))).init(Key(0), lambda: real)["pixels"]
    assert torch.equal(pixels, real)
    assert pixels.data_ptr() != real.data_ptr()


@pytest.mark.parametrize("name", ["pixels", "latent"])
def test_options_survive_json(name: str) -> None:
    frame = Frame(4, 3, (3, 16, 16))
    made = build(name, frame)
    assert build(name, frame, json.loads(json.dumps(options_of(made)))) == made
    assert parse_parametrisation(name) == (name, {})


def refuse(error: type[EspError], match: str, name: str, frame: Frame, **options: object) -> None:
    with pytest.raises(error, match=match):
        build(name, frame, options)


def test_what_cannot_be_is_refused() -> None:
    frame = Frame(10, 1, (3, 32, 32))
    refuse(UnknownNameError, "unknown parametrisation", "codes", frame)
    refuse(InputError, "0 images per class", "pixels", Frame(10, 0, CIFAR))
    refuse(InputError, "-1 images per class", "latent", Frame(10, -1, CIFAR))
    refuse(InputError, "positive numbers", "latent", frame, code=-1)
    refuse(InputError, "positive numbers", "latent", frame, hidden=[4, -1])
    for hidden in ([8], [8, 6, 4], [8, 0]):
        refuse(InputError, "hidden=", "latent", frame, code=8, hidden=hidden, decoders=1)
    refuse(BudgetError, "cannot hold 5 decoders", "latent", frame, code=64, hidden=[32, 16], decoders=5)
    refuse(BudgetError, "too few for any decoder", "latent", Frame(2, 1, (1, 4, 4)))
    with pytest.raises(InputError, match="cannot start from real images"):
        small()[0].init(Key(0), lambda: torch.zeros(1))
    with pytest.raises(UnknownNameError, match="unknown option of parametrisation latent"):
        parse_parametrisation("latent,decoder=3")
    with pytest.raises(InputError, match="is not a valid tuple"):
        parse_parametrisation("latent,hidden=8x6")


class Greedy(Pixels):
    """Stores one number too many."""

    @property
    def stored(self) -> int:
        return self.frame.budget + 1


def test_a_set_of_ones_own_must_keep_to_the_budget() -> None:
    made: Parametrisation = Greedy(Frame(2, 1, (1, 4, 4)))
    assert made.stored == 33
    with pytest.raises(BudgetError, match="33 stored numbers exceed the budget of 32"):
        build(f"{__name__}:Greedy", made.frame)
