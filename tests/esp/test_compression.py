from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esp import artifact, condensed
from esp.compression import (
    BITS,
    SCALE,
    STREAM,
    ZERO,
    channels,
    compress,
    decompress,
    dequantise,
    entropy,
    pack,
    quantise,
    unpack,
)
from esp.core import Task
from esp.errors import ArtifactError, InputError
from esp.rng import Key

SHAPES = [(7,), (3, 5), (4, 3, 5, 5), (2, 6, 3, 4, 4), (3, 2, 5)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(codes=st.lists(st.integers(0, 255), max_size=40), bits=st.sampled_from(BITS))
@settings(max_examples=60, deadline=None)
def test_packed_codes_come_back(codes: list[int], bits: int) -> None:
    code = torch.tensor([value % 2**bits for value in codes], dtype=torch.uint8)
    packed = pack(code, bits)
    assert len(packed) == -(-len(codes) * bits // 8)
    assert torch.equal(unpack(packed, bits, len(codes)), code)


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert pack(torch.tensor([1, 2, 3, 0, 2], dtype=torch.uint8), 2) == bytes([0b00111001, 0b00000010])
    assert pack(torch.tensor([1, 15], dtype=torch.uint8), 4) == bytes([0xF1])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_number_that_is_not_clipped_is_off_by_half_a_step_at_most(shape: tuple[int, ...], bits: int) -> None:
    tensor = noise(*shape)
    code, scale, zero = quantise(tensor, bits)
    off = (dequantise(code, scale, zero) - tensor).abs() / scale.float()
    inside = (code > 0) & (code < 2**bits - 1)
    assert int(code.max()) < 2**bits
    assert float(off[inside].max() if bool(inside.any()) else 0) <= 0.5 + 1e-4


def test_every_channel_has_a_scale_of_its_own() -> None:
    assert [channels(shape) for shape in SHAPES] == [(), (0,), (1,), (0, 2), (0,)]
    images = noise(20, 3, 4, 4) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None]
    code, scale, zero = quantise(images, 8)
    assert scale.shape == (1, 3, 1, 1)
    lost = (dequantise(code, scale, zero) - images).square().mean((0, 2, 3)).sqrt() / images.std((0, 2, 3))
    assert float(lost.max()) < 0.02, "the small channel drowns in the large one"


@pytest.mark.parametrize(("bits", "largest"), [(8, 0.012), (4, 0.12), (2, 0.36)])
def test_the_error_of_normal_numbers_is_near_that_of_the_best_uniform_quantiser(bits: int, largest: float) -> None:
    """Max (1960): 0.345 for 2 bits, 0.107 for 4; 8 bits over the whole range are below a hundredth."""
    assert compress({"pixels": noise(100, 1, 16, 16)}, bits)[2].error < largest


def test_a_constant_channel_and_a_wide_range_survive() -> None:
    flat = torch.full((4, 1, 3, 3), 0.25)
    huge = torch.linspace(-3e6, 3e6, 64).reshape(4, 1, 4, 4)
    tiny = torch.linspace(-1e-7, 1e-7, 64).reshape(4, 1, 4, 4)
    for tensor in (flat, huge, tiny):
        stored, described, sizes = compress({"x": tensor}, 8)
        found = decompress(stored, described)["x"]
        assert torch.allclose(found, tensor, rtol=0, atol=float(tensor.abs().max()) * 0.005)
        assert sizes.error < 0.005


@pytest.mark.parametrize("bits", BITS)
def test_what_is_stored_is_what_is_counted(bits: int) -> None:
    parameters = {
        "codes": noise(30, 4, 4, 4),
        "decoders.0.weight": noise(2, 4, 3, 4, 4),
        "decoders.0.bias": noise(2, 3),
    }
    stored, described, sizes = compress(parameters, bits)
    assert sizes.stored_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert sizes.coded_bytes == stored[STREAM].nbytes
    assert sizes.coded_bytes <= sizes.packed_bytes == sum(-(-t.numel() * bits // 8) for t in parameters.values())
    assert sizes.original_bytes == 4 * sizes.numbers == sum(t.nbytes for t in parameters.values())
    assert stored[SCALE + "codes"].shape == stored[ZERO + "codes"].shape == (4,)
    assert len(stored[SCALE + "decoders.0.weight"]) == 6
    assert {**described, "tensors": None} == {"bits": bits, "coder": sizes.coder, "tensors": None}


def test_decoding_is_the_stated_arithmetic_and_nothing_else() -> None:
    parameters = {"pixels": noise(6, 2, 5, 5)}
    stored, described, _ = compress(parameters, 4)
    code, scale, zero = quantise(parameters["pixels"], 4)
    found = decompress(stored, described)["pixels"]
    by_hand = code.numpy().astype("float32") * scale.float().numpy() + zero.float().numpy()
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(by_hand))


def test_each_coder_is_chosen_where_it_is_best_and_decodes() -> None:
    random = torch.randint(256, (1, 1, 30, 30), generator=torch.Generator().manual_seed(0)).float()
    repeated = random[..., :15, :].repeat(1, 1, 2, 1).repeat(1, 1, 12, 12)
    skewed = (noise(1, 1, 40, 40) > 1.5).float()
    found = set()
    for tensor in (random, repeated, skewed):
        stored, described, sizes = compress({"x": tensor}, 8)
        found.add(sizes.coder)
        assert torch.equal(decompress(stored, described)["x"], dequantise(*quantise(tensor, 8)))
    assert found == {"none", "deflate", "lzma"}


def test_the_entropy_is_that_of_the_counts() -> None:
    assert entropy(torch.tensor([0, 0, 1, 1], dtype=torch.uint8)) == 4
    assert entropy(torch.zeros(9, dtype=torch.uint8)) == 0
    expected = -4 * (0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert entropy(torch.tensor([5, 7, 7, 7], dtype=torch.uint8)) == pytest.approx(expected)


def test_integers_are_kept_and_nonsense_is_refused() -> None:
    stored, described, sizes = compress({"x": noise(3, 3), "rows": torch.arange(4)}, 8)
    assert torch.equal(decompress(stored, described)["rows"], torch.arange(4))
    assert sizes.numbers == 9
    with pytest.raises(InputError, match="3 bits"):
        compress({"x": noise(3)}, 3)
    with pytest.raises(InputError, match="not finite"):
        compress({"x": torch.tensor([1.0, math.nan])}, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 0}, {"bits": "8"}, {"bits": 4}, {"coder": "zip"}, {"coder": "lzma"}, {"tensors": {"x": [10**12]}},
        {"tensors": {"x": [6, 8]}}, {"tensors": {"x": [7, 7], "y": [1]}}, {"tensors": None},
    ],
)  # fmt: skip
def test_pieces_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    stored, described, _ = compress({"x": noise(7, 7)}, 8)
    with pytest.raises(ArtifactError, match="cannot be decoded"):
        decompress(stored, {**described, **change})


def test_a_stream_that_would_grow_without_end_is_cut_off() -> None:
    stored, described, sizes = compress({"x": torch.zeros(1, 1, 2000, 2000)}, 8)
    assert sizes.coded_bytes < 10_000
    with pytest.raises(ArtifactError, match="11 bytes of codes where there should be 10"):
        decompress(stored, {**described, "tensors": {"x": [10]}})


@pytest.mark.parametrize(("stored", "bits"), [("pixels", 8), ("multiformation", 4), ("latent", 2), ("latent", 8)])
def test_a_compressed_set_is_loaded_like_any_other(
    make_task: Callable[..., Task], tmp_path: Path, stored: str, bits: int
) -> None:
    task = make_task(stored)
    parameters = task.parametrisation.init(Key(0), None)
    condensed.save(tmp_path / "whole", stored, task.parametrisation, parameters, task.data, {"run": "a"})
    source = condensed.load(tmp_path / "whole")
    digest, sizes = condensed.save_compressed(tmp_path / "less", source, bits, {"run": "b"})
    found = condensed.load(tmp_path / "less")
    assert artifact.read_meta(tmp_path / "less")[1] == digest
    assert found.parametrisation == source.parametrisation
    assert found.meta == {**source.meta, "run": "b", "compression": found.meta["compression"]}
    assert torch.equal(found.labels(), source.labels())
    assert {name: t.shape for name, t in found.parameters.items()} == {n: t.shape for n, t in parameters.items()}
    off = float((found.images() - source.images()).norm() / source.images().norm())
    assert off < {8: 0.03, 4: 0.2, 2: 0.9}[bits]
    assert sizes.stored_bytes < sum(tensor.nbytes for tensor in parameters.values())
    found.require(task.data)
    with pytest.raises(InputError, match=f"has {bits}-bit numbers already"):
        condensed.save_compressed(tmp_path / "again", found, 8, {})


def test_the_same_numbers_have_the_same_content_whatever_the_metadata_say(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    task = make_task()
    parameters = task.parametrisation.init(Key(0), None)
    for name in ("a", "b"):
        condensed.save(tmp_path / name, "pixels", task.parametrisation, parameters, task.data, {"run": name})
    assert artifact.content_digest(tmp_path / "a") == artifact.content_digest(tmp_path / "b")
    assert artifact.read_meta(tmp_path / "a")[1] != artifact.read_meta(tmp_path / "b")[1]
    other = {name: tensor + 1e-3 for name, tensor in parameters.items()}
    condensed.save(tmp_path / "c", "pixels", task.parametrisation, other, task.data, {"run": "a"})
    assert artifact.content_digest(tmp_path / "a") != artifact.content_digest(tmp_path / "c")
