"""Fewer bytes for a synthetic set that is finished: uniform quantisation per channel, then an entropy coder.

A floating-point tensor becomes integer codes of `bits` bits and, for each channel, a scale and a zero:

    value = scale[channel] * code + zero[channel]        one float32 multiplication, then one addition

The codes of all tensors, in the order of their names, are packed 8 / bits to a byte (the first in the lowest bits, each
tensor filled up to whole bytes) and go through one lossless coder of the standard library: raw deflate (zlib, level 9)
or raw LZMA (preset 9, extreme), whichever makes fewer bytes, or none where neither helps. Tensors of integers are kept
as they are.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esp.errors import ArtifactError, InputError
from esp.files import DAMAGED
from esp.optim import Tensors

BITS = (8, 4, 2)
STREAM, SCALE, ZERO = "compressed.stream", "compressed.scale.", "compressed.zero."
SHRINKS = tuple(1 - 0.02 * step for step in range(41))
"""Ranges that are tried for each channel: all of it, and down to a fifth, which serves the bulk and clips the tails."""

_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME}]


@dataclass(frozen=True)
class Sizes:
    """What a compressed set costs.

    Attributes:
        numbers: quantised numbers.
        bits: of each code.
        coder: `deflate`, `lzma` or `none`.
        original_bytes: of the tensors before.
        packed_bytes: of the codes without an entropy coder.
        entropy_bytes: of an ideal coder that knows how often each code comes in each tensor and no more; what a real
            coder saves beyond that comes from codes that repeat in patterns.
        coded_bytes: of the codes as they are stored.
        scale_bytes: of scales, zeros and whatever else is stored.
        stored_bytes: of everything that is needed to decode: coded_bytes + scale_bytes.
        error: root mean square difference of the numbers, over their root mean square.
    """

    numbers: int
    bits: int
    coder: str
    original_bytes: int
    packed_bytes: int
    entropy_bytes: int
    coded_bytes: int
    scale_bytes: int
    stored_bytes: int
    error: float


def compress(parameters: Mapping[str, Tensor], bits: int) -> tuple[Tensors, dict[str, Any], Sizes]:
    """Quantise and code.

    Args:
        parameters: name -> tensor of any shape on the CPU.
        bits: of each code: 8, 4 or 2.

    Returns:
        The tensors to store, what `decompress` has to be told beside them (JSON), and the cost.

    Raises:
        InputError: another number of bits, or a tensor with a number that is not finite.
    """
    if bits not in BITS:
        raise InputError(f"{bits} bits are not offered", f"give {', '.join(map(str, BITS[:-1]))} or {BITS[-1]}")
    real = {name: tensor for name, tensor in sorted(parameters.items()) if tensor.is_floating_point()}
    kept = {name: tensor for name, tensor in parameters.items() if name not in real}
    stored, codes, lossy, squares = dict(kept), [], 0.0, 0.0
    for name, tensor in real.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{name!r} has numbers that are not finite", "compress a set that did not diverge")
        code, scale, zero = quantise(tensor, bits)
        codes.append(code)
        stored |= {SCALE + name: scale.flatten(), ZERO + name: zero.flatten()}
        lossy += float((dequantise(code, scale, zero) - tensor).double().square().sum())
        squares += float(tensor.double().square().sum())
    packed = b"".join(pack(code, bits) for code in codes)
    coder, coded = _smallest(packed)
    others = sum(tensor.nbytes for tensor in stored.values())
    stored[STREAM] = _tensor(coded)
    described = {
        "bits": bits,
        "coder": coder,
        "tensors": {name: list(tensor.shape) for name, tensor in real.items()},
    }
    sizes = Sizes(
        sum(code.numel() for code in codes),
        bits,
        coder,
        sum(tensor.nbytes for tensor in parameters.values()),
        len(packed),
        math.ceil(sum(entropy(code) for code in codes) / 8),
        len(coded),
        others,
        len(coded) + others,
        math.sqrt(lossy / squares) if squares else 0.0,
    )
    return stored, described, sizes


def decompress(stored: Mapping[str, Tensor], described: Mapping[str, Any]) -> Tensors:
    """The parameters, float32 where they were quantised.

    Raises:
        ArtifactError: the pieces do not fit together.
    """
    try:
        bits, shapes = described["bits"], described["tensors"]
        if bits not in BITS:
            raise ValueError(f"{bits!r} bits")
        lengths = {name: -(-math.prod(shape) * bits // 8) for name, shape in shapes.items()}
        packed = _decode(described["coder"], bytes(stored[STREAM].numpy().tobytes()), sum(lengths.values()))
        found = {n: t for n, t in stored.items() if n != STREAM and not n.startswith((SCALE, ZERO))}
        at = 0
        for name in sorted(shapes):
            shape = tuple(shapes[name])
            code = unpack(packed[at : at + lengths[name]], bits, math.prod(shape)).reshape(shape)
            at += lengths[name]
            found[name] = dequantise(code, *(_spread(stored[kind + name], shape) for kind in (SCALE, ZERO)))
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise ArtifactError(f"the compressed tensors cannot be decoded ({error})", DAMAGED) from error
    return found


def channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes whose indices name a channel, which has a scale and a zero of its own.

    [n, channel, h, w]: images and codes; [decoder, in, channel, k, k]: the output channels of each decoder;
    [row, ...]: anything else with rows; a vector is one channel.
    """
    return {4: (1,), 5: (0, 2)}.get(len(shape), (0,) if len(shape) > 1 else ())


def quantise(tensor: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 like `tensor`, and scale and zero of each channel, with 1 for every other axis.

    Of some ranges around the mean of a channel, that with the least squared error is taken. Scale and zero are
    float16, or float32 where they would over- or underflow, and the codes are chosen for them as they are stored.
    """
    values, top = tensor.float(), 2**bits - 1
    across = [axis for axis in range(values.ndim) if axis not in channels(tuple(values.shape))]
    low, high, middle = values.amin(across, True), values.amax(across, True), values.mean(across, True)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for shrink in SHRINKS:
        zero = middle + shrink * (low - middle)
        scale, zero = _short(shrink * (high - low) / top, zero)
        code = ((values - zero.float()) / torch.where(scale > 0, scale, 1).float()).round().clamp(0, top)
        lost = (dequantise(code, scale, zero) - values).square().sum(across, keepdim=True)
        if best is None:
            best, least = (code, scale, zero), lost
            continue
        better = lost < least
        least = torch.minimum(lost, least)
        best = (
            torch.where(better, code, best[0]),
            torch.where(better, scale, best[1]),
            torch.where(better, zero, best[2]),
        )
    assert best is not None
    return best[0].to(torch.uint8), best[1], best[2]


def _short(scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float16, unless a scale vanishes or one of them is too large for that."""
    halves = scale.half(), zero.half()
    fits = all(bool(half.isfinite().all()) for half in halves) and bool(((halves[0] > 1e-4) | (scale == 0)).all())
    return halves if fits else (scale, zero)


def dequantise(code: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """scale * code + zero in float32."""
    return scale.float() * code.float() + zero.float()


def _spread(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One value per channel [channels] as a tensor that broadcasts to `shape`."""
    axes = channels(shape)
    return values.reshape([size if axis in axes else 1 for axis, size in enumerate(shape)])


def pack(code: Tensor, bits: int) -> bytes:
    """Codes in memory order, 8 / bits to a byte, the first in the lowest bits."""
    each = 8 // bits
    rows = torch.nn.functional.pad(code.flatten(), (0, -code.numel() % each)).reshape(-1, each).to(torch.int32)
    shifted = rows << (bits * torch.arange(each, dtype=torch.int32))
    return bytes(shifted.sum(1).to(torch.uint8).numpy().tobytes())


def unpack(packed: bytes, bits: int, count: int) -> Tensor:
    """The first `count` codes, uint8 [count]."""
    each = 8 // bits
    rows: Tensor = _tensor(packed).to(torch.int32)[:, None] >> (bits * torch.arange(each, dtype=torch.int32))
    return rows.bitwise_and(2**bits - 1).flatten()[:count].to(torch.uint8)


def entropy(code: Tensor) -> float:
    """Bits of all codes of a tensor together, each at the entropy of how often the codes come (order zero)."""
    share = torch.bincount(code.flatten().long()).double() / code.numel()
    share = share[share > 0]
    return float(-(share * share.log2()).sum()) * code.numel() + 0.0


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)


def _deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    return coder.compress(data) + coder.flush()


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA)


_CODERS: dict[str, Callable[[bytes], bytes]] = {"none": bytes, "deflate": _deflate, "lzma": _lzma}


def _smallest(data: bytes) -> tuple[str, bytes]:
    made = {name: coder(data) for name, coder in _CODERS.items()}
    name = min(made, key=lambda name: len(made[name]))
    return name, made[name]


def _decode(coder: str, data: bytes, length: int) -> bytes:
    """Exactly `length` bytes; a stream that would make more is refused before it is decoded further."""
    if coder == "deflate":
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length + 1)
    elif coder == "lzma":
        data = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA).decompress(data, length + 1)
    elif coder != "none":
        raise ValueError(f"unknown coder {coder!r}")
    if len(data) != length:
        raise ValueError(f"{len(data)} bytes of codes where there should be {length}")
    return data
