"""Files that somebody else wrote: settings, protocols, data, artifacts, run folders, studies, benches, bundles."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from esp import artifact
from esp.files import canonical, file_sha256, sha256
from espctl.store.models import REVISIONS

Spoil = Callable[[Path, Path], None]
DEEP = "[" * 100_000
HUGE = "9" * 5000
ESCAPE = "\x1b]0;owned\x07\x1b[31m\u202ered\n"
TENSORS = "data info tensors:{tmp}/x.npz"
HEADERS = "data info tensors:{tmp}/x.safetensors"
FOLDER = "data info folder:{tmp}/set"
SCORE = "evaluate {run} --epochs 1"
IMPORT = "runs import {tmp}/x.tar"


def text(name: str, content: str | bytes) -> Spoil:
    """Write a file into the case's folder; a name that begins with / is below the project."""

    def spoil(home: Path, tmp: Path) -> None:
        path = home / name[1:] if name.startswith("/") else tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return spoil


def settings(content: str | bytes) -> Spoil:
    return text("/espctl.toml", content)


def protocol(lines: str) -> Spoil:
    return text("x.toml", f'base = "dsa"\n{lines}')


# safetensors headers that lie, and npz files


def header(entries: Any, body: bytes = b"\0" * 64, length: int | None = None) -> Spoil:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return text("x.safetensors", struct.pack("<Q", len(raw) if length is None else length) + raw + body)


def entry(dtype: str = "U8", shape: Any = (64,), offsets: Any = (0, 64)) -> dict[str, Any]:
    return {"train_images": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def arrays(**changes: Any) -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(6) % 2
    return {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels, **changes}


HALF = b"\x93NUMPY\x01\x00" + struct.pack("<H", 54) + b"{'descr': '|u1', 'x': (2, 1, L" + b" " * 23 + b"\n"


def npz_member(content: bytes) -> Spoil:
    """An npz whose members hold something that is no array."""

    def spoil(home: Path, tmp: Path) -> None:
        npz()(home, tmp)
        with zipfile.ZipFile(tmp / "x.npz") as there, zipfile.ZipFile(tmp / "y.npz", "w") as made:
            for member in there.namelist():
                made.writestr(member, content)
        (tmp / "y.npz").replace(tmp / "x.npz")

    return spoil


def npz(**changes: Any) -> Spoil:
    def spoil(home: Path, tmp: Path) -> None:
        with (tmp / "x.npz").open("wb") as file:
            np.savez(file, **arrays(**changes))

    return spoil


def npy(head: str) -> Spoil:
    """An npz whose first array has a header of its own and no numbers."""
    raw = head.encode() + b" " * (-(len(head) + 11) % 64) + b"\n"
    one = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw

    def spoil(home: Path, tmp: Path) -> None:
        npz()(home, tmp)
        with zipfile.ZipFile(tmp / "x.npz") as there, zipfile.ZipFile(tmp / "y.npz", "w") as made:
            for name in there.namelist():
                made.writestr(name, one if name == "train_images.npy" else there.read(name))
        (tmp / "y.npz").replace(tmp / "x.npz")

    return spoil


def named(classes: Any, flips: str = "false") -> Spoil:
    def spoil(home: Path, tmp: Path) -> None:
        tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays().items()}
        said = classes if isinstance(classes, str) else json.dumps(classes)
        save_file(tensors, tmp / "x.safetensors", metadata={"classes": said, "flips": flips})

    return spoil


# folders of images


def png(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", body or zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + pixels + chunk(b"IEND", b"")


def image(content: bytes | str = "", name: str = "1.png", every: bool = False) -> Spoil:
    """A tree of images with one of another content; a text is where it links to."""

    def spoil(home: Path, tmp: Path) -> None:
        for place in ("train/a", "train/b", "test/a", "test/b"):
            (tmp / "set" / place).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp / "set" / place / "0.png")
        for place in ("train/a", "train/b", "test/a", "test/b") if every else ("train/b",):
            path = tmp / "set" / place / ("0.png" if every else name)
            path.unlink(missing_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.symlink_to(content)

    return spoil


def tree(change: Callable[[Path], Any]) -> Spoil:
    def spoil(home: Path, tmp: Path) -> None:
        image(b"", "x.txt")(home, tmp)
        change(tmp / "set")

    return spoil


# what the program itself wrote, changed by somebody who knows how to compute a checksum


def forged(pattern: str, change: Callable[[dict[str, Any], dict[str, Any]], Any], everywhere: bool = False) -> Spoil:
    """Rewrite an artifact with other metadata or tensors, with valid digests, and tell the run's outcome of it."""

    def spoil(home: Path, tmp: Path) -> None:
        for path in sorted(home.glob(pattern))[: None if everywhere else 1]:
            found = artifact.load(path)
            meta, tensors = json.loads(json.dumps(found.meta)), {k: v.clone() for k, v in found.tensors.items()}
            change(meta, tensors)
            artifact.save(path, tensors, meta, by_row=["theta"] if "theta" in tensors else [])
            outcome = path.parent / "outcome.json"
            if outcome.exists():
                body = json.loads(outcome.read_text())
                for item in body["artifacts"]:
                    if item["path"] == path.name:
                        item |= {"sha256": file_sha256(path), "bytes": path.stat().st_size}
                outcome.write_text(json.dumps(body))
        for path in home.glob("espctl.db*"):
            path.unlink()

    return spoil


def synthetic(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Spoil:
    return forged("runs/*/synthetic.safetensors", change)


def expert(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Spoil:
    return forged("experts/*/*.safetensors", change, everywhere=True)


def body(pattern: str, change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Rewrite the header of an artifact itself, with a valid digest."""

    def spoil(home: Path, tmp: Path) -> None:
        for path in home.glob(pattern):
            raw = path.read_bytes()
            size = struct.unpack("<Q", raw[:8])[0]
            listed = json.loads(raw[8 : 8 + size])
            held = json.loads(listed["__metadata__"]["esp"])
            del held["digest"]
            change(held)
            listed["__metadata__"]["esp"] = canonical({**held, "digest": sha256(canonical(held))})
            made = json.dumps(listed).encode()
            path.write_bytes(struct.pack("<Q", len(made)) + made + raw[8 + size :])

    return spoil


def said(name: str, change: Callable[[dict[str, Any]], Any] | str) -> Spoil:
    """Change a JSON file of the run, and forget the database."""

    def spoil(home: Path, tmp: Path) -> None:
        [folder] = [path for path in (home / "runs").iterdir() if path.is_dir()]
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(change, str):
            path.write_text(change)
        else:
            value = json.loads(path.read_text())
            change(value)
            path.write_text(json.dumps(value))
        for database in home.glob("espctl.db*"):
            database.unlink()

    return spoil


# bundles


def packed(change: Callable[[dict[str, Any], dict[str, bytes]], Any], name: str = "x.tar") -> Spoil:
    """A bundle whose manifest and files were changed; checksums that it lists stay as `change` leaves them."""

    def spoil(home: Path, tmp: Path) -> None:
        files = {"runs/r/request.json": b"{}", "runs/r/outcome.json": b"{}"}
        manifest = {
            "format": "espctl-bundle", "version": 1, "schema": REVISIONS[-1], "program": "0", "runs": ["r"],
            "files": [{"path": path, "sha256": sha256(data), "bytes": len(data)} for path, data in files.items()],
        }  # fmt: skip
        change(manifest, files)
        with tarfile.open(tmp / name, "w") as tar:
            for path, data in {"manifest.json": json.dumps(manifest).encode(), **files}.items():
                member = tarfile.TarInfo(path)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    return spoil


def member(path: str, kind: bytes, to: str = "") -> Spoil:
    """A bundle with one more member, of a kind that no bundle holds."""

    def spoil(home: Path, tmp: Path) -> None:
        packed(lambda manifest, files: None)(home, tmp)
        with tarfile.open(tmp / "x.tar", "a") as tar:
            info = tarfile.TarInfo(path)
            info.type, info.linkname = kind, to
            tar.addfile(info)

    return spoil


def listed(path: str) -> Spoil:
    """A bundle that holds a file of this path, and lists it."""

    def change(manifest: dict[str, Any], files: dict[str, bytes]) -> None:
        files[path] = b"x"
        manifest["files"].append({"path": path, "sha256": sha256(b"x"), "bytes": 1})

    return packed(change)


def bomb(home: Path, tmp: Path) -> None:
    import gzip

    with gzip.open(tmp / "x.tar", "wb", 9) as file:
        for _ in range(300):
            file.write(b"\0" * 2**20)


def put(**values: Any) -> Callable[..., None]:
    return lambda where, *_: where.update(values)


def inner(key: str, **values: Any) -> Callable[..., None]:
    return lambda where, *_: where[key].update(values)


def lack(key: str) -> Callable[..., None]:
    return lambda where, *_: where.pop(key)


SHOW = "protocols show {tmp}/x.toml"
CASES: list[tuple[str, Any, Any, str]] = [
    # settings
    ("not TOML", settings("[["), "runs ls", "is not valid TOML"),
    ("not UTF-8", settings(b"\xff\xfe\0x"), "runs ls", "is not valid TOML"),
    ("deep TOML", settings("x = " + DEEP), "runs ls", "is not valid TOML"),
    ("a megabyte of one value", settings("[compute]\ndevice = '" + "x" * 2**20 + "'"), "runs ls", "compute.device"),
    ("a megabyte of one key", settings("x" * 2**20 + " = 1"), "runs ls", "unknown setting"),
    ("huge number", settings(f"[compute]\nthreads = {HUGE}"), "runs ls", "espctl.toml"),
    ("large number", settings("[experts]\ncount = 99999999999999999999"), "runs ls", "experts.count"),
    ("nan", settings("[experts]\nlr = nan"), "runs ls", "experts.lr"),
    ("inf", settings("[compute]\ncheckpoint_every = inf"), "runs ls", "checkpoint_every"),
    ("escape in a key", settings('"\\u001B[31m\\u202E" = 1'), "runs ls", "unknown setting"),
    ("escape in a value", settings('[compute]\ndevice = "\\u001B[31m\\n"'), "runs ls", "compute.device"),
    ("NUL in a path", settings('[paths]\ndata = "a\\u0000b"'), "data info digits", "null"),
    ("section as value", settings("compute = 3"), "runs ls", "must be a section"),
    ("home as table", settings("[home]\nx = 1"), "runs ls", "home"),
    ("a list", settings("[compute]\nthreads = [1]"), "runs ls", "whole number"),
    ("a date", settings("[paths]\ndata = 2026-01-01"), "runs ls", "text"),
    ("protocols as list", settings("protocols = [1]"), "protocols ls", "must hold tables"),
    ("protocol without base", settings("[protocols.mine]\nepochs = 3"), "protocols ls", "based on"),
    ("protocol of itself", settings('[protocols.a]\nbase = "a"'), "protocols ls", "unknown protocol 'a'"),
    (
        "protocols in a circle",
        settings('[protocols.a]\nbase = "b"\n[protocols.b]\nbase = "a"'),
        "protocols ls",
        "unknown",
    ),
    ("protocol of a bad name", settings('[protocols."a b\\u001B"]\nbase = "dsa"'), "protocols ls", "cannot name"),
    ("protocol of a built-in name", settings('[protocols.dsa]\nbase = "mtt"'), "protocols ls", "built-in"),
    # protocol files
    ("no TOML", text("x.toml", "{"), SHOW, "is not valid TOML"),
    ("deep", text("x.toml", "x = " + DEEP), SHOW, "is not valid TOML"),
    ("no UTF-8", text("x.toml", b"\xff"), SHOW, "is not valid TOML"),
    ("no base", text("x.toml", "epochs = 3"), SHOW, "based on"),
    ("unknown key", protocol("epoch = 3"), SHOW, "unknown key of protocol x"),
    ("wrong type", protocol('epochs = "many"'), SHOW, "whole number"),
    ("no epochs", protocol("epochs = 0"), SHOW, "above zero"),
    ("endless", protocol("epochs = 99999999999999999999"), SHOW, "epochs"),
    ("a number without end", protocol(f"epochs = {HUGE}"), SHOW, "not valid TOML"),
    ("huge lr", protocol(f"lr = {'9' * 400}"), SHOW, "finite"),
    ("lr nan", protocol("lr = nan"), SHOW, "finite"),
    ("lr word", protocol('lr = "fast"'), SHOW, "learned or stable"),
    ("milestone of 7", protocol("milestones = [7.0]"), SHOW, "milestones"),
    ("milestones of text", protocol('milestones = ["x"]'), SHOW, "milestones"),
    ("large of numbers", protocol("large = [3]"), SHOW, "pairs"),
    ("unknown augmentation", protocol('augmentation = "colour"'), SHOW, "unknown augmentation"),
    ("unknown loss", protocol('loss = "l9"'), SHOW, "loss=l9"),
    ("name with escapes", protocol('name = "\\u001B[31m"'), SHOW, "cannot name"),
    ("name of a number", protocol("name = 3"), SHOW, "cannot call"),
    ("unknown network", protocol('network = "convnt"'), "evaluate {run} -p {tmp}/x.toml", "unknown network"),
    ("selection that is none", protocol('select = "best"'), SHOW, "select=best"),
    # safetensors
    ("empty", text("x.safetensors", b""), HEADERS, "not a readable safetensors"),
    ("4 GB header", header(b"{}", length=2**32), HEADERS, "not a readable safetensors"),
    ("header of 2^63", header(b"{}", length=2**63), HEADERS, "not a readable safetensors"),
    ("header after the end", header(b"{}", b"", length=99), HEADERS, "not a readable safetensors"),
    ("header no JSON", header(b"not json"), HEADERS, "not a readable safetensors"),
    ("header deep", header(DEEP.encode()), HEADERS, "not a readable safetensors"),
    ("header a list", header([1]), HEADERS, "not a readable safetensors"),
    ("offsets after the end", header(entry(offsets=(0, 2**40), shape=(2**40,))), HEADERS, "not a readable safetensors"),
    ("offsets turned round", header(entry(offsets=(64, 0))), HEADERS, "not a readable safetensors"),
    ("negative offsets", header(entry(offsets=(-1, 63))), HEADERS, "not a readable safetensors"),
    ("shape too large", header(entry(shape=(65,))), HEADERS, "not a readable safetensors"),
    ("shape overflows", header(entry(shape=(2**32, 2**32))), HEADERS, "not a readable safetensors"),
    ("unknown dtype", header(entry(dtype="X7")), HEADERS, "not a readable safetensors"),
    ("other names", header(entry()), HEADERS, "has no array"),
    ("pickle inside", text("x.safetensors", b"\x80\x04\x95cos\nsystem\n(S'x'\ntR."), HEADERS, "not a readable"),
    ("class twice", named(["a", "a"]), HEADERS, "appears twice"),
    ("classes too few", named(["a"]), HEADERS, "at least 2"),
    ("classes no list", named({"a": 1}), HEADERS, "not a list of names"),
    ("classes deep", named(DEEP), HEADERS, "not a list of names"),
    ("class with escapes twice", named([ESCAPE, ESCAPE]), HEADERS, "appears twice"),
    ("flips maybe", named(["a", "b"], "maybe"), HEADERS, "neither true nor false"),
    # npz
    ("npz empty", text("x.npz", b""), TENSORS, "not a readable npz"),
    ("npz with half a header", npz_member(HALF), TENSORS, "EOF in multi-line statement"),
    ("npz without an array", npz_member(b"no array"), TENSORS, "is no numpy array"),
    ("npz text", text("x.npz", b"PK\x03\x04" + b"x" * 50), TENSORS, "not a readable npz"),
    ("npz pickle", text("x.npz", b"\x80\x04\x95cos\nsystem\n(S'x'\ntR."), TENSORS, "not a readable npz"),
    ("npz of objects", npz(train_images=np.array([{"a": 1}], dtype=object)), TENSORS, "not a readable npz"),
    ("npz of text", npz(train_labels=np.array(["a"] * 6)), TENSORS, "has the type"),
    ("npz of complex numbers", npz(train_images=np.zeros((6, 1, 8, 8), complex)), TENSORS, "has the type"),
    ("npz of structures", npz(train_labels=np.zeros(6, [("a", int)])), TENSORS, "has the type"),
    ("npz of floats as labels", npz(train_labels=np.zeros(6)), TENSORS, "has the type"),
    ("npz of huge labels", npz(train_labels=np.full(6, 2**63 - 1)), TENSORS, "not among them"),
    ("npz of no images", npz(train_images=np.zeros((0, 1, 8, 8), np.uint8)), TENSORS, "is empty"),
    ("npz of no pixels", npz(train_images=np.zeros((6, 1, 0, 8), np.uint8)), TENSORS, "is empty"),
    ("npz of no labels", npz(train_labels=np.zeros(0, int)), TENSORS, "has 0 classes"),
    ("npz inf", npz(train_images=np.full((6, 1, 8, 8), np.inf, np.float32)), TENSORS, "not from 0 to 1"),
    ("npz of five axes", npz(train_images=np.zeros((6, 1, 8, 8, 1), np.uint8)), TENSORS, "5 axes"),
    (
        "npy header lies",
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 1, 8, 8)}"),
        TENSORS,
        "does not fit into memory",
    ),
    (
        "npy header negative",
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 1, 8, 8)}"),
        TENSORS,
        "negative dimensions",
    ),
    ("npy header code", npy("__import__('os').system('true')"), TENSORS, "not a readable npz"),
    (
        "npy header objects",
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
        TENSORS,
        "not a readable npz",
    ),
    # folders of images
    ("bomb", image(png(60_000, 60_000)), FOLDER, "too many pixels"),
    ("bomb everywhere", image(png(60_000, 60_000), every=True), FOLDER, "too many pixels"),
    ("wide", image(png(2**31 - 1, 1)), FOLDER, "1.png"),
    ("no size", image(png(0, 0)), FOLDER, "1.png"),
    ("lies about its size", image(png(8, 8, zlib.compress(b"\0" * 7))), FOLDER, "1.png"),
    ("no zlib", image(png(8, 8, b"junk")), FOLDER, "1.png"),
    ("text", image(b"hello"), FOLDER, "not a readable image"),
    ("empty image", image(b""), FOLDER, "not a readable image"),
    ("script", image(b"#!/bin/sh\ntrue\n"), FOLDER, "not a readable image"),
    ("eps", image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"), FOLDER, "1.png"),
    ("svg", image(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), FOLDER, "not a readable image"),
    ("link to nothing", image("/nowhere/at/all", "0.png"), FOLDER, "holds no image"),
    ("link to a device", image("/dev/zero", "0.png"), FOLDER, "holds no image"),
    ("link to itself", image("0.png", "0.png"), FOLDER, "symbolic links"),
    ("escape in a file name", image(b"x", "\x1b[31m\u202e\n.png"), FOLDER, "not a readable image"),
    ("escape in a class", tree(lambda path: (path / "train" / "\x1b[31m\n").mkdir()), FOLDER, "holds no image"),
    (
        "class that is not tested",
        tree(lambda path: shutil.copytree(path / "train/a", path / "train/<b>")),
        FOLDER,
        "but not in",
    ),
    ("no test", tree(lambda path: shutil.rmtree(path / "test")), FOLDER, "there is no folder"),
    ("options no JSON", tree(lambda path: (path / "dataset.json").write_text("{")), FOLDER, "is not valid JSON"),
    ("options deep", tree(lambda path: (path / "dataset.json").write_text(DEEP)), FOLDER, "is not valid JSON"),
    ("options unknown", tree(lambda path: (path / "dataset.json").write_text('{"x":1}')), FOLDER, "not understood"),
    ("options a folder", tree(lambda path: (path / "dataset.json").mkdir()), FOLDER, "directory"),
    # synthetic sets with valid checksums
    ("synthetic of another kind", synthetic(put(kind="trajectory")), SCORE, "not a synthetic set"),
    ("synthetic without description", synthetic(lack("parametrisation")), SCORE, "'parametrisation'"),
    (
        "synthetic of an unknown kind",
        synthetic(inner("parametrisation", name="pixls")),
        SCORE,
        "unknown parametrisation",
    ),
    ("synthetic of code", synthetic(inner("parametrisation", name="os:system")), SCORE, "no parametrisation"),
    ("synthetic of a class", synthetic(inner("parametrisation", name="subprocess:Popen")), SCORE, "no parametrisation"),
    ("synthetic of unknown options", synthetic(inner("parametrisation", options={"x": 1})), SCORE, "cannot be built"),
    ("synthetic of list options", synthetic(inner("parametrisation", options=[1])), SCORE, "'options'"),
    ("synthetic of no classes", synthetic(inner("parametrisation", classes=0)), SCORE, "which images"),
    ("synthetic of many classes", synthetic(inner("parametrisation", classes=10**15)), SCORE, "which images"),
    ("synthetic of more classes", synthetic(inner("parametrisation", classes=11)), SCORE, "as many numbers"),
    ("synthetic of text classes", synthetic(inner("parametrisation", classes="10")), SCORE, "'classes'"),
    ("synthetic of a huge shape", synthetic(inner("parametrisation", shape=[1, 10**9, 10**9])), SCORE, "which images"),
    ("synthetic of a flat shape", synthetic(inner("parametrisation", shape=[256])), SCORE, "which images"),
    ("synthetic of nested shape", synthetic(inner("parametrisation", shape=[[1], 16, 16])), SCORE, "which images"),
    ("synthetic without means", synthetic(lack("mean")), SCORE, "'mean'"),
    ("synthetic of text means", synthetic(put(mean=["x"])), SCORE, "which images"),
    ("synthetic of no means", synthetic(put(mean=[], std=[])), SCORE, "number of means"),
    ("synthetic of other data", synthetic(put(fingerprint="0" * 64)), SCORE, "another data set"),
    ("synthetic of no fingerprint", synthetic(put(fingerprint=None)), SCORE, "'fingerprint'"),
    ("synthetic of a space", synthetic(put(space="\x1b[31mzca")), SCORE, "pixel space"),
    ("synthetic of a learned list", synthetic(put(learned=[])), SCORE, "'learned'"),
    ("synthetic of a learned text", synthetic(put(learned={"rate": "x"})), SCORE, "which images"),
    ("synthetic without tensors", synthetic(lambda meta, tensors: tensors.clear()), SCORE, "does not hold the tensors"),
    ("synthetic cut", synthetic(lambda meta, t: t.update({k: v[:1].clone() for k, v in t.items()})), SCORE, "hold"),
    ("synthetic of a number", synthetic(lambda meta, t: t.update(pixels=torch.zeros(()))), SCORE, "does not hold"),
    ("synthetic with more", synthetic(lambda meta, t: t.update(more=torch.zeros(9))), SCORE, "as many numbers"),
    (
        "synthetic with odd labels",
        synthetic(lambda m, t: t.update({"learned.labels": torch.zeros(3)})),
        SCORE,
        "as many",
    ),
    ("compressed text", synthetic(put(compression="x")), SCORE, "'compression'"),
    ("compressed nothing", synthetic(put(compression={})), SCORE, "cannot be decoded"),
    ("compressed by nobody", synthetic(put(compression={"bits": 9, "tensors": {}})), SCORE, "cannot be decoded"),
    (
        "header without digests",
        body("runs/*/synthetic.safetensors", lack("digests")),
        "report images {run} -o {tmp}/x.png",
        "synthetic",
    ),
    ("header of a list", body("experts/*/*.safetensors", put(digests=[])), "experts ls", "'digests'"),
    ("header of another format", body("experts/*/*.safetensors", put(format=99)), "experts ls", "format 99"),
    ("header of meta text", body("experts/*/*.safetensors", put(meta="x")), "experts ls", "'meta'"),
    # experts with valid checksums
    ("expert without curve", expert(lack("curve")), "experts ls", "'curve'"),
    ("expert with an empty curve", expert(put(curve=[])), "experts ls", "curve"),
    ("expert with odd points", expert(put(curve=[3])), "experts ls", "curve"),
    ("expert with text points", expert(put(curve=[{"accuracy": "x", "loss": None}])), "experts ls", "'accuracy'"),
    ("expert of text epochs", expert(put(epochs="4")), "experts ls", "'epochs'"),
    ("expert of yes epochs", expert(put(epochs=True)), "experts ls", "'epochs'"),
    ("expert without network", expert(lack("network")), "experts ls", "'network'"),
    ("expert of no kind", expert(put(kind=None)), "experts ls", "not an expert trajectory"),
    ("expert of text", text("/experts/x/expert-0000.safetensors", "hello"), "experts ls", "not a readable"),
    ("expert of an odd number", text("/experts/x/expert-zz.safetensors", "hello"), "experts show q", "is unknown"),
    # converted data with valid checksums
    ("data without classes", forged("data/digits.safetensors", lack("classes")), "data info digits", "'classes'"),
    ("data of another name", forged("data/digits.safetensors", put(name="mnist")), "data info digits", "does not hold"),
    ("data of text", forged("data/digits.safetensors", put(mean="x")), "data info digits", "'mean'"),
    ("data of one class", forged("data/digits.safetensors", put(classes=["a"])), "data info digits", "at least 2"),
    (
        "data of bad labels",
        forged("data/digits.safetensors", lambda m, t: t["train_labels"].fill_(77)),
        "data info digits",
        "77",
    ),
    (
        "data of no images",
        forged("data/digits.safetensors", lambda m, t: t.pop("train_images")),
        "data info digits",
        "train_images",
    ),
    (
        "data of floats",
        forged("data/digits.safetensors", lambda m, t: t.update(train_images=torch.zeros(3))),
        "data info digits",
        "uint8",
    ),
    # run folders
    ("request no JSON", said("request.json", "{"), "runs show {run}", "there is no run"),
    ("request deep", said("request.json", DEEP), "runs show {run}", "there is no run"),
    ("request a list", said("request.json", "[]"), "runs show {run}", "there is no run"),
    ("request of another run", said("request.json", put(id="../../x")), "runs show {run}", "there is no run"),
    ("request of a huge ipc", said("request.json", inner("request", ipc=10**30)), "runs show {run}", "there is no run"),
    ("request of text", said("request.json", put(request="x")), "runs show {run}", "there is no run"),
    ("request of no time", said("request.json", put(created="soon")), "runs show {run}", "there is no run"),
    (
        "request of a far time",
        said("request.json", put(created="0001-01-01T00:00:00+14:00")),
        "runs show {run}",
        "there is no run",
    ),
    ("request of odd experts", said("request.json", inner("request", experts=[3])), "verify {run}", "there is no run"),
    ("request of text experts", said("request.json", inner("request", experts="x")), "rerun {run}", "there is no run"),
    (
        "request of no options",
        said("request.json", inner("request", method_options=None)),
        "rerun {run}",
        "there is no run",
    ),
    (
        "request of list options",
        said("request.json", inner("request", method_options=[1])),
        "rerun {run}",
        "there is no run",
    ),
    (
        "request of unknown method",
        said("request.json", inner("request", method="\x1b[31mx")),
        "rerun {run}",
        "does not belong to its key",
    ),
    (
        "request of another data set",
        said("request.json", inner("request", dataset="mnsit")),
        "rerun {run}",
        "does not belong to its key",
    ),
    ("request of a network", said("request.json", inner("request", network=3)), "runs show {run}", "there is no run"),
    ("outcome no JSON", said("outcome.json", "\0"), "runs show {run}", "there is no run"),
    ("outcome of a state", said("outcome.json", put(state="\x1b[31m")), "runs show {run}", "there is no run"),
    (
        "outcome of NaN",
        said("outcome.json", '{"state": "finished", "seconds": NaN}'),
        "runs show {run}",
        "there is no run",
    ),
    ("outcome of huge bytes", said("outcome.json", put(peak_memory_bytes=2**70)), "runs show {run}", "there is no run"),
    ("outcome of odd artifacts", said("outcome.json", put(artifacts=[1])), "runs show {run}", "there is no run"),
    (
        "outcome of other artifacts",
        said("outcome.json", put(artifacts=[{"name": "synthetic", "path": "/etc/passwd", "sha256": "0", "bytes": 1}])),
        SCORE,
        "is not the file that the run made",
    ),
    ("labels no JSON", said("labels.json", "{"), "runs show {run}", "there is no run"),
    ("labels of odd tags", said("labels.json", '{"tags": [[1]]}'), "runs show {run}", "there is no run"),
    ("labels of half a letter", said("labels.json", '{"name": "\\ud800"}'), "runs show {run}", "there is no run"),
    ("score no JSON", said("evaluations/x.json", "nan"), "runs show {run}", "there is no run"),
    # studies and benches
    ("study no JSON", text("/studies/s/study.json", "{"), "tune show s", "is not valid JSON"),
    ("study a list", text("/studies/s/study.json", "[]"), "tune show s", "does not describe a study"),
    (
        "study without plan",
        text("/studies/s/study.json", '{"created": "2026-01-01"}'),
        "tune show s",
        "does not describe",
    ),
    (
        "study of another plan",
        text("/studies/s/study.json", '{"created": "2026-01-01", "plan": {"x": 1}}'),
        "tune show s",
        "does not",
    ),
    ("bench no JSON", text("x.json", "{"), "report figure7 --bench {tmp}/x.json", "no bench"),
    ("bench deep", text("x.json", DEEP), "report figure7 --bench {tmp}/x.json", "no bench"),
    ("bench a number", text("x.json", "3"), "report figure7 --bench {tmp}/x.json", "no bench"),
    ("bench empty", text("x.json", "[]"), "report figure7 --bench {tmp}/x.json", "no points"),
    ("bench odd", text("x.json", "[3]"), "report figure7 --bench {tmp}/x.json", "no bench"),
    (
        "bench inf",
        text("x.json", '[{"method": "esp", "inner_steps": 1e999, "ipc": 1, "seconds": 1, "peak_memory_bytes": 1}]'),
        "report figure7 --bench {tmp}/x.json",
        "no bench",
    ),
    (
        "bench NaN",
        text("x.json", '[{"method": "esp", "inner_steps": 1, "ipc": 1, "seconds": NaN, "peak_memory_bytes": 1}]'),
        "report figure7 --bench {tmp}/x.json",
        "no bench",
    ),
    (
        "bench negative",
        text("x.json", '[{"method": "esp", "inner_steps": 1, "ipc": 1, "seconds": -1, "peak_memory_bytes": 1}]'),
        "report figure7 --bench {tmp}/x.json",
        "no bench",
    ),
    ("bench no UTF-8", text("x.json", b"\xff"), "report figure7 --bench {tmp}/x.json", "no bench"),
    # bundles
    ("bundle text", text("x.tar", "hello" * 200), IMPORT, "cannot be read"),
    ("bundle bomb", bomb, IMPORT, "is no bundle"),
    ("bundle absolute path", listed("/etc/x"), IMPORT, "cannot hold"),
    ("bundle parent path", listed("runs/r/../../x"), IMPORT, "cannot hold"),
    ("bundle backslashes", listed("runs\\r\\x"), IMPORT, "cannot hold"),
    ("bundle escape", listed("runs/r/\x1b[31m"), IMPORT, "cannot hold"),
    ("bundle newline", listed("runs/r/a\nb"), IMPORT, "cannot hold"),
    ("bundle right to left", listed("runs/r/\u202egnp.x"), IMPORT, "cannot hold"),
    ("bundle dots", listed("runs/../x"), IMPORT, "cannot hold"),
    ("bundle elsewhere", listed("data/x.safetensors"), IMPORT, "cannot hold"),
    ("bundle deep path", listed("runs/" + "a/" * 500 + "x"), IMPORT, "cannot hold"),
    ("bundle long name", listed("runs/r/" + "a" * 300), IMPORT, "cannot hold"),
    ("bundle link", member("runs/r/link", tarfile.SYMTYPE, "/etc/passwd"), IMPORT, "link"),
    ("bundle hard link", member("runs/r/link", tarfile.LNKTYPE, "/etc/passwd"), IMPORT, "link"),
    ("bundle device", member("runs/r/null", tarfile.CHRTYPE), IMPORT, "device"),
    ("bundle pipe", member("runs/r/pipe", tarfile.FIFOTYPE), IMPORT, "device"),
    ("bundle folder", member("runs/r/folder", tarfile.DIRTYPE), IMPORT, "folder"),
    ("bundle of another format", packed(put(format="zip")), IMPORT, "is no bundle"),
    ("bundle of another version", packed(put(version=99)), IMPORT, "has version 99"),
    ("bundle of a later schema", packed(put(schema="9999")), IMPORT, "schema '9999'"),
    ("bundle of no files", packed(put(files=[])), IMPORT, "contradicts itself"),
    ("bundle of odd files", packed(put(files=[3])), IMPORT, "lacks a key"),
    ("bundle of text", packed(put(files="x")), IMPORT, "lacks a key"),
    ("bundle of other runs", packed(put(runs=["../x"])), IMPORT, "contradicts itself"),
    ("bundle of number runs", packed(put(runs=[1])), IMPORT, "contradicts itself"),
    ("bundle of huge files", packed(lambda m, f: m["files"][0].update(bytes=2**60)), IMPORT, "more than a bundle may"),
    ("bundle of negative files", packed(lambda m, f: m["files"][0].update(bytes=-1)), IMPORT, "lacks a key"),
    ("bundle of other bytes", packed(lambda m, f: f.update({"runs/r/request.json": b"[]"})), IMPORT, "checksum"),
    ("bundle with more", packed(lambda m, f: f.update({"runs/r/more.json": b"x"})), IMPORT, "not in its manifest"),
    ("bundle with less", packed(lambda m, f: f.pop("runs/r/outcome.json")), IMPORT, "is missing"),
    ("bundle of an empty run", packed(lambda m, f: None), IMPORT, "'request' is missing"),
]


@pytest.mark.parametrize(("spoil", "words", "message"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_a_file_of_a_stranger_is_refused(refused: Callable[..., None], spoil: Spoil, words: str, message: str) -> None:
    refused(spoil, words, message)


TABLES = [(CASES, 1)]
