"""Exporting the synthetic set of a run as files that other programs read, written aside and renamed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from esp import files
from esp.condensed import Condensed
from esp.data.dataset import Dataset
from esp.data.store import load as load_data
from esp.errors import InputError, UnknownNameError
from espctl.errors import RunError
from espctl.services.data import in_space_of
from espctl.services.evaluate import synthetic_of
from espctl.services.exporting import plain as writers
from espctl.services.exporting.cards import card, licence, source
from espctl.services.exporting.plain import Plain
from espctl.services.project import Project, find_run
from espctl.services.scores import Summary, summaries
from espctl.store.records import RunRecord

FORMATS = {
    "safetensors": "plain images and labels in one file of tensors",
    "imagefolder": "a PNG per image, in a folder per class",
    "npz": "plain images and labels in one numpy archive",
    "huggingface": "the image folder with a data card, for the Hugging Face hub",
}
_FOLDERS = ("imagefolder", "huggingface")
_MARK = "export.json"
"""The file that makes a folder an export, which may be replaced by another."""


@dataclass(frozen=True)
class Exported:
    """What was written. `clamped` is the share of numbers that no pixel can hold and that were clamped."""

    run: str
    format: str
    path: Path
    images: int
    shape: tuple[int, ...]
    classes: int
    test_images: int
    clamped: float
    bytes: int


def export(
    project: Project, name: str, form: str, output: Path | None, force: bool = False, with_test: bool = False
) -> Exported:
    """Write the synthetic set of a finished run.

    Args:
        project: the open project.
        name: of the run, or the beginning of it.
        form: one of `FORMATS`.
        output: the file or folder to make; by default named after the run, in the working folder.
        force: whether an earlier export may be replaced.
        with_test: whether the real test images go with it; then `tensors:FILE` and `folder:PATH` can load it.

    Raises:
        UnknownNameError: there is no such format.
        RunError: the run is unknown or not finished.
        InputError: the target exists, or cannot hold the images.
    """
    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    run = find_run(project, name)
    if run.state != "finished":
        raise RunError(f"the run {run.id} is {run.state}", f"finish it first: espctl condense --resume {run.id}")
    target = (output or Path(f"{run.id}-{form}" if form in _FOLDERS else f"{run.id}.{form}")).absolute()
    _require_free(target, form, force)
    synthetic = synthetic_of(project.folder_of(run.id))
    plain = decode(synthetic, in_space_of(project, synthetic))
    if with_test:
        data = load_data(run.dataset, project.paths.data, project.paths.raw)
        if data.fingerprint != synthetic.meta["fingerprint"]:
            raise InputError(f"{data.name} has changed since the run", "restore it, or leave out --with-test")
        plain = replace(plain, test_pixels=data.test_images, test_labels=data.test_labels)
    scores = summaries(project, [run])
    with _aside(target, form) as temporary:
        _write(temporary, form, run, plain, scores, _asked(project, run))
    tests = 0 if plain.test_labels is None else len(plain.test_labels)
    shape = tuple(plain.pixels.shape[1:])
    size = sum(path.stat().st_size for path in (target, *target.rglob("*")) if path.is_file())
    return Exported(run.id, form, target, len(plain.labels), shape, len(plain.classes), tests, plain.clamped, size)


def decode(synthetic: Condensed, data: Dataset | None) -> Plain:
    """Every image of a synthetic set, as numbers in its pixel space and as pixels.

    Args:
        data: what it was condensed from, in that space; not needed where that is the normalised one.
    """
    meta, soft = synthetic.meta, synthetic.soft
    images = synthetic.images().detach().float().cpu()
    return Plain(
        images,
        synthetic.pixels(data).cpu(),
        _clamped(images, meta["mean"], meta["std"], data),
        synthetic.labels() if soft is None else soft.argmax(1),
        soft,
        tuple(meta["classes"]),
        tuple(meta["mean"]),
        tuple(meta["std"]),
        bool(meta.get("flips", False)),  # older sets do not say; a flip that changes the label does harm
        synthetic.space,
    )


def _clamped(images: Tensor, mean: list[float], std: list[float], data: Dataset | None) -> float:
    """Share of the numbers that lie outside of 0 to 255, by more than rounding, once they are pixels."""
    whitening, pixels = data.whitening if data else None, images
    if whitening is not None:
        pixels = whitening.undo(images.flatten(1)).reshape(images.shape)
    if whitening is None or whitening.space != "zca":
        columns = [images.new_tensor(values)[:, None, None] for values in (mean, std)]
        pixels = pixels * columns[1] + columns[0]
    return float(((pixels * 255 < -0.5) | (pixels * 255 > 255.5)).float().mean())


def _asked(project: Project, run: RunRecord) -> dict[str, Any]:
    request: dict[str, Any] = files.read_json(project.folder_of(run.id) / "request.json")["request"]
    return request


def _write(path: Path, form: str, run: RunRecord, plain: Plain, scores: list[Summary], asked: dict[str, Any]) -> None:
    facts = {
        "run": run.id,
        "key": run.key,
        "method": run.method,
        "method_options": asked.get("method_options"),
        "preset": asked.get("preset"),
        "seed": run.seed,
        "dataset": source(run.dataset),
        "fingerprint": run.fingerprint,
        "ipc": run.ipc,
        "parametrisation": run.parametrisation,
        "stored_numbers": run.stored_numbers,
        "budget_numbers": run.budget_numbers,
        "space": plain.space,
        "mean": list(plain.mean),
        "std": list(plain.std),
        "clamped": plain.clamped,
        "licence": licence(run.dataset).sentence,
        "scores": [
            {"protocol": s.protocol, "network": s.network, "mean": s.mean, "sd": s.sd, "n": s.n} for s in scores
        ],
    }
    if form == "safetensors":
        writers.write_safetensors(path, plain, facts)
    elif form == "npz":
        writers.write_npz(path, plain, facts)
    elif form == "imagefolder":
        writers.write_images(path, plain, facts)
    else:
        writers.write_huggingface(path, plain, facts, card(run, plain, scores, asked))


def _require_free(target: Path, form: str, force: bool) -> None:
    """Refuse to replace what is there, unless it is an earlier export, or a file, and that was allowed."""
    if form in _FOLDERS and target.is_dir() and not target.is_symlink():
        if not any(target.iterdir()):
            return
        if not (target / _MARK).is_file():
            raise InputError(f"{target} is a folder that is not an export", "choose another --output")
    elif target.is_dir() or (form in _FOLDERS and (target.exists() or target.is_symlink())):
        raise InputError(f"{target} is in the way", "choose another --output")
    elif not target.exists():
        return
    if not force:
        raise InputError(f"{target} exists already", "choose another --output, or replace it with --force")


@contextlib.contextmanager
def _aside(target: Path, form: str) -> Iterator[Path]:
    """A file or an empty folder that takes the place of `target` when the block ends without an error."""
    if form not in _FOLDERS:
        with files.aside(target) as temporary:
            yield temporary
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as holder:
        made, old = Path(holder) / "new", Path(holder) / "old"
        made.mkdir()
        yield made
        if target.exists():
            target.replace(old)
        try:
            made.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
