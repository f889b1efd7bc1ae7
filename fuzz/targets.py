"""A fuzz target for each parser of what strangers write: `python -m fuzz NAME [seconds]`.

A parser may refuse its input with a child of `EspError`; whatever else it raises is a finding. Inputs that atheris
finds worth keeping stay in a temporary folder of the process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import shutil
import struct
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from esp import artifact, condensed, recipes, trajectory
from esp.data import folder, tensors
from esp.data.raw import validate
from esp.errors import EspError
from esp.files import canonical, sha256
from esp.networks.flat import canonical_spec
from esp.parametrisation import parse_parametrisation
from espctl import render, settings
from espctl.cli.options import pairs
from espctl.cli.tune import seconds
from espctl.errors import ExpressionError
from espctl.report import bench
from espctl.services import protocols
from espctl.services.project import Project
from espctl.services.tuning import space
from espctl.store import bundle, expressions, query
from espctl.store import folder as runs
from espctl.store.engine import open_store

Target = Callable[[bytes], None]
PLACE = Path(tempfile.mkdtemp(prefix="espctl-fuzz-"))
atexit.register(shutil.rmtree, PLACE, ignore_errors=True)
MOMENT = "2026-01-31T12:00:00+00:00"


def written(name: str, data: bytes) -> Path:
    path = PLACE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def settings_file(data: bytes) -> None:
    written("home/espctl.toml", data)
    settings.load({"home": PLACE / "home"}, PLACE, {})


def protocol_file(data: bytes) -> None:
    path = written("mine.toml", b'base = "dsa"\n' + data)
    protocols.find(Project(settings.Settings()), str(path))


def protocol_name(data: bytes) -> None:
    if b":" not in data:  # the name of somebody's own is imported
        recipes.protocol(text(data))


def set_option(data: bytes) -> None:
    pairs(text(data).split("\n"))
    seconds(text(data))


def space_text(data: bytes) -> None:
    _, found = space.parse(text(data))
    assert space.parse(f"x={found}")[1].kind == found.kind


def filter_text(data: bytes) -> None:
    found = expressions.parse(text(data))
    assert all(part.field for part in expressions.comparisons(found))


def sql_text(data: bytes) -> None:
    database = PLACE / "espctl.db"
    if not database.exists():
        open_store(database, PLACE)
    query.ask(database, text(data), 10, 0.2)


def spec_text(data: bytes) -> None:
    if b":" not in data:
        with contextlib.suppress(EspError):
            canonical_spec(text(data))
        parse_parametrisation(text(data))


def image_file(data: bytes) -> None:
    for place in ("train/a", "train/b", "test/a", "test/b"):
        path = PLACE / "set" / place / "0.png"
        if not path.exists():
            path.parent.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(path)
    written("set/train/a/1.png", data)
    validate(folder.convert(PLACE / "set"), "set")


def safetensors_file(data: bytes) -> None:
    validate(tensors.convert(written("x.safetensors", data)), "x")


def lying_header(data: bytes) -> None:
    """A header of its own length, so that mutations reach what is in it."""
    head, _, rest = data.partition(b"\0")
    safetensors_file(struct.pack("<Q", len(head)) + head + rest)


def npz_file(data: bytes) -> None:
    validate(tensors.convert(written("x.npz", data)), "x")


def artifact_file(data: bytes) -> None:
    path = written("a.safetensors", data)
    artifact.read_meta(path)
    artifact.load(path)


def forged_artifact(data: bytes) -> None:
    """Metadata of a stranger with a valid digest, read as a synthetic set and as an expert."""
    meta = json.loads(data)
    if not isinstance(meta, dict) or ":" in str(meta.get("parametrisation")).replace("': ", ""):
        return
    canonical(meta)
    path = PLACE / "f.safetensors"
    artifact.save(path, {"pixels": torch.zeros(4, 1, 4, 4), "theta": torch.zeros(3, 5)}, meta, by_row=["theta"])
    with contextlib.suppress(EspError):
        condensed.load(path)
    trajectory.open_expert(path)


def run_folder(data: bytes) -> None:
    parts = (data.split(b"\0") + [b"{}"] * 5)[:5]
    names = ("request.json", "outcome.json", "labels.json", "metrics.jsonl", "evaluations/x.json")
    for name, part in zip(names, parts, strict=True):
        written(f"runs/r/{name}", part)
    runs.metrics(PLACE / "runs/r")
    with contextlib.suppress(EspError):
        runs.labels(PLACE / "runs/r")
    with contextlib.suppress(EspError, ValueError, RecursionError):
        runs.evaluation_record("r", json.loads(parts[4]))
    runs.read(PLACE / "runs/r", PLACE)


def bench_file(data: bytes) -> None:
    bench.load(written("bench.json", data))


def bundle_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=PLACE) as there:
        bundle.unpack(written("x.tar", data), Path(there), 2**20)
        assert all(path.resolve().is_relative_to(there) for path in Path(there).rglob("*"))


def printed(data: bytes) -> None:
    for letter in render.clean(text(data)):
        assert unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(letter) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


TARGETS: dict[str, Target] = {
    "artifact": artifact_file, "bench": bench_file, "bundle": bundle_file, "filter": filter_text,
    "forged": forged_artifact, "header": lying_header, "image": image_file, "npz": npz_file, "printed": printed,
    "protocol": protocol_file, "protocol-name": protocol_name, "run": run_folder, "safetensors": safetensors_file,
    "set": set_option, "settings": settings_file, "space": space_text, "spec": spec_text, "sql": sql_text,
}  # fmt: skip


def check(target: Target, data: bytes) -> None:
    """Give bytes to a parser; what it says must be one sentence and a remedy.

    Raises:
        Exception: whatever is no refusal.
    """
    try:
        target(data)
    except EspError as error:
        _inspect(error)
    except (ValueError, RecursionError):
        if target is not forged_artifact:  # its own JSON
            raise


def _inspect(error: EspError) -> None:
    assert error.message
    assert not error.message.endswith(".")
    assert not isinstance(error, ExpressionError) or 0 <= error.place <= len(error.text)


def seeds(name: str) -> Iterator[bytes]:
    """Good input, from which mutations start."""
    yield from {
        "settings": [b"[compute]\nthreads = 1\n[experts]\nlr = 0.1\n[protocols.mine]\nbase = 'dsa'\n"],
        "protocol": [b"epochs = 3\nlr = 'learned'\nmilestones = [0.5]\nlarge = [[5, 0.5]]\n"],
        "protocol-name": [b"dsa@300+held-out"],
        "set": [b"beta=1e-4\nsteps=3", b"1h30m"],
        "space": [b"beta=float(1e-7,1e-3,log)", b"steps=int(1,20)", b"start=choice(noise,real)"],
        "filter": [b"method=esp and (ipc>=10 or tag='a b') not options.beta<1e-4"],
        "sql": [b"select id, state from runs where ipc > 3"],
        "spec": [b"convnet3,width=4,norm=none", b"latent,code=4,hidden=8-6", b"multiformation,factor=2"],
        "bench": [b'{"figure7": [{"method":"esp","inner_steps":1,"ipc":1,"seconds":1,"peak_memory_bytes":1}]}'],
        "run": [_run()],
        "forged": [_forged(), b'{"kind": "trajectory", "curve": [{"accuracy": 1, "loss": null}], "epochs": 2}'],
        "header": [b'{"train_images":{"dtype":"U8","shape":[2,1,2,2],"data_offsets":[0,8]}}\0abcdefgh'],
        "npz": [_file("npz")],
        "safetensors": [_file("safetensors")],
        "artifact": [_file("artifact")],
        "bundle": [_file("bundle")],
        "image": [_file("png"), _file("bmp"), _file("webp"), _file("jpeg")],
    }.get(name, [b"\x1b[31m\xe2\x80\xae"])


def _run() -> bytes:
    asked = {"method": "esp", "dataset": "digits", "ipc": 1, "seed": 0, "experts": []}
    head = {"id": "r", "key": "k", "kind": "condense", "created": MOMENT, "request": asked}
    outcome = {"state": "finished", "artifacts": [{"name": "s", "path": "s", "sha256": "0", "bytes": 1}]}
    score = {"protocol": "dsa", "protocol_hash": "p", "network": "n", "seed": 0, "accuracy": 0.5, "created": MOMENT}
    parts = (head, outcome, {"tags": ["a"], "name": "b"}, {"step": 1, "loss": 2}, score)
    return b"\0".join(json.dumps(part).encode() for part in parts)


def _forged() -> bytes:
    how = {"name": "pixels", "options": {}, "classes": 4, "ipc": 1, "shape": [1, 4, 4]}
    texts = {"kind": "synthetic", "dataset": "d", "fingerprint": "f", "space": "normalised"}
    return json.dumps({**texts, "mean": [0.5], "std": [0.5], "parametrisation": how, "learned": {"rate": 1}}).encode()


@functools.cache
def _file(kind: str) -> bytes:
    path = PLACE / f"seed-{kind}.{'npz' if kind == 'npz' else 'safetensors'}"
    images, labels = np.zeros((2, 1, 4, 4), np.uint8), np.arange(2)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    if kind == "npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    elif kind == "bundle":
        path = PLACE / "seed.tar"
        bundle.pack({"runs/r/request.json": written("request.json", b"{}")}, ["r"], "0", path)
    elif kind in ("png", "bmp", "webp", "jpeg"):
        Image.new("RGB", (4, 4)).save(path, kind)
    else:
        artifact.save(path, {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}, {"kind": "x"})
    return path.read_bytes()


def digest(data: bytes) -> str:
    """A short name for an input."""
    return sha256(data)[:12]
