"""The paper's figures from what was measured here: pictures of synthetic sets, and curves.

Which figure shows what is inferred: Figures 3 to 6 synthetic images of the four data sets, 7 cost by inner steps, 8
accuracy against one option.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esp.errors import InputError
from esp.files import canonical
from esp.statistics import mean_and_sd
from espctl.errors import RunError
from espctl.report import bench, plots, svg
from espctl.services.project import Project, dataset_name
from espctl.services.reporting import report
from espctl.services.reporting.groups import LABELS, Group
from espctl.services.scores import summaries
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord

if TYPE_CHECKING:
    from torch import Tensor

DATASETS = {"3": "svhn", "4": "cifar10", "5": "cifar100", "6": "tinyimagenet"}


@dataclass(frozen=True)
class Drawn:
    """The run that Figures 3 to 6 draw, and its best score in percent; None where it has none."""

    run: str
    dataset: str
    method: str
    stored: str
    ipc: int
    accuracy: float | None
    sd: float | None
    n: int
    network: str
    protocol: str


@dataclass(frozen=True)
class Setting:
    """One point of Figure 8: scores in percent of runs that differ from those of the same curve in one option alone.

    Attributes:
        curve: number of the curve; its points have everything else in common.
    """

    curve: int
    dataset: str
    method: str
    stored: str
    ipc: int
    network: str
    protocol: str
    option: str
    value: float | str
    mean: float
    sd: float
    n: int
    runs: tuple[str, ...]


SHOWN = 20  # images of a class, and classes, in one picture


def images(project: Project, name: str, path: Path) -> Path:
    """Draw a run's synthetic images, one row per class, and write a PNG.

    Raises:
        InputError: the file is not named like a PNG.
        RunError: there is no such run, or it has made nothing yet.
    """
    require_png(path)
    from esp import pictures  # imports torch, which the tables do without

    pixels, shown, classes = _pixels(project, store_runs.find_run(project.store, name), SHOWN)
    pictures.save_grid(path, pixels, shown, labels=classes)
    return path


def thumbnail(project: Project, name: str) -> tuple[bytes, int, int, str]:
    """A run's synthetic images as a small PNG without labels: its bytes, width, height, and what it shows.

    Raises:
        EspError: there is no such run, or its file is missing or damaged.
    """
    from esp import pictures

    pixels, shown, classes = _pixels(project, store_runs.find_run(project.store, name), SHOWN // 2)
    most = min(len(classes), SHOWN)
    pixels, way = pixels[: most * shown], "row"
    if shown < most:  # lying down it takes less room
        pixels, way = pixels.reshape(most, shown, *pixels.shape[1:]).transpose(0, 1).flatten(0, 1), "column"
    picture = pictures.grid(pixels, shown if way == "row" else most)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    what = f"A {way} for each of {most if most == len(classes) else f'the first {most} of {len(classes)}'} classes."
    return buffer.getvalue(), picture.width, picture.height, what


def require_png(path: Path) -> None:
    """Raise `InputError` unless a file is named like a PNG."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} is not a PNG file", "give a name that ends in .png")


def _pixels(project: Project, run: RunRecord, most: int) -> tuple[Tensor, int, list[str]]:
    """Images of a run, uint8 [classes * shown, c, h, w] with at most so many of a class, how many, and the classes."""
    from esp import condensed
    from esp.data.store import load
    from esp.data.zca import in_space
    from esp.spaces import NORMALISED

    if run.state != "finished":
        raise RunError(f"the run {run.id} is {run.state}", f"finish it first: espctl condense --resume {run.id}")
    found = condensed.load(project.folder_of(run.id) / "synthetic.safetensors")
    paths, data = project.paths, None
    if found.space != NORMALISED:  # the way back is kept with the data set
        data = in_space(load(run.dataset, paths.data, paths.raw), found.space, paths.data)
    pixels = found.pixels(data)
    classes = list(found.meta["classes"])
    each = len(pixels) // len(classes)
    shown = min(each, most)
    return pixels.reshape(len(classes), each, *pixels.shape[1:])[:, :shown].flatten(0, 1), shown, classes


def best(project: Project, dataset: str, method: str, ipc: int | None) -> Drawn:
    """The run of a data set whose synthetic images scored best; the newest where none was scored.

    Raises:
        RunError: there is no finished run of this method.
    """
    dataset = dataset_name(dataset)
    filters = {"dataset": dataset, "method": method, "state": "finished", **({"ipc": ipc} if ipc else {})}
    found = [run for run in store_runs.list_runs(project.store, filters) if run.preset != report.TRIAL]
    if not found:
        command = f"espctl condense --dataset {dataset} --ipc {ipc or 1} --method {method}"
        raise RunError(f"there is no finished run of {method} on {dataset}", command)
    scores = max(summaries(project, found), key=lambda s: s.mean, default=None)
    run = next((run for run in found if scores and run.id == scores.run), found[0])
    what = run.id, run.dataset, run.method, run.parametrisation or "", run.ipc
    if scores is None:
        return Drawn(*what, None, None, 0, "", "")
    return Drawn(*what, 100 * scores.mean, 100 * scores.sd, scores.n, scores.network, scores.protocol)


def inner_steps(path: Path | None) -> bench.Bench:
    """The points of Figure 7, from a bench, or from the newest one under `results` of the working folder."""
    return bench.load(path or bench.find(Path()))


def inner_steps_charts(found: bench.Bench) -> list[svg.Chart]:
    """Memory and time against inner steps, a curve for each method and number of images per class."""
    memory, seconds = [], []
    for colour, (method, ipc) in enumerate(dict.fromkeys((p.method, p.ipc) for p in found.points)):
        name = " ".join([method[:3].upper(), *method.split()[1:]])
        label = f"{name}, {ipc} per class"
        points = [p for p in found.points if (p.method, p.ipc) == (method, ipc)]
        sizes = [(p.inner_steps, (p.peak_memory_bytes or 0) / 1e6, p.fits) for p in points if p.peak_memory_bytes]
        run = tuple((float(n), size) for n, size, fits in sizes if fits)
        guessed = tuple((float(n), size) for n, size, fits in sizes if not fits)
        memory += [svg.Line(label, run, colour=colour)] if run else []
        memory += [svg.Line(f"{label}, estimated", (*run[-1:], *guessed), True, colour)] if guessed else []
        times = tuple((float(p.inner_steps), p.seconds) for p in points if p.seconds is not None)
        seconds += [svg.Line(label, times, colour=colour)] if times else []
    return [
        svg.Chart("Peak memory of one update", "inner steps", "MB", tuple(memory), found.about),
        svg.Chart("Time of one update", "inner steps", "seconds", tuple(seconds), found.about),
    ]


def by_option(project: Project, query: report.Query, option: str | None) -> list[Setting]:
    """The points of Figure 8: accuracy against an option, for runs that differ in nothing else but their seed.

    Args:
        option: of the method; None for the one with the most points.

    Raises:
        InputError: no two runs differ in the option alone.
    """
    chosen = [group for group in report.groups(project, query) if report.wanted(group, query)]
    names = [option] if option else sorted({name for group in chosen for name in group.request["method_options"]})
    found = max((settings(chosen, name) for name in names), key=len, default=[])
    if not found:
        what = f"the option {option}" if option else "one option"
        where = f" on {query.dataset}" if query.dataset else ""
        raise InputError(
            f"no two scored runs{where} differ in {what} alone",
            f"condense again with another value: --set {option or 'segment'}=..., and evaluate",
        )
    return found


def by_option_chart(found: list[Setting]) -> svg.Chart:
    """The curves of Figure 8."""
    names = tuple(dict.fromkeys(str(s.value) for s in found)) if isinstance(found[0].value, str) else ()
    lines: list[svg.Line] = []
    for curve in dict.fromkeys(s.curve for s in found):
        members = [s for s in found if s.curve == curve]
        points = tuple((float(names.index(str(s.value)) if names else s.value), s.mean) for s in members)
        first = members[0]
        label = (
            f"{first.method} {first.stored}, {first.dataset}, {first.ipc} per class, {first.network}, {first.protocol}"
        )
        lines.append(svg.Line(label, points, colour=len(lines), spread=tuple(s.sd for s in members)))
    option, values = found[0].option, [point[0] for line in lines for point in line.points]
    wide = not names and min(values) > 0 and max(values) / min(values) > 50
    caption = "Mean and standard deviation over networks; nothing but the option differs along a curve."
    return svg.Chart(f"Accuracy by {option}", option, "accuracy", tuple(lines), caption, wide, names)


def draw(path: Path, charts: list[svg.Chart]) -> Path:
    """Write charts into a PNG.

    Raises:
        InputError: the file is not named like a PNG, or matplotlib is missing.
    """
    require_png(path)
    plots.save(path, charts)
    return path


def settings(groups: list[Group], option: str) -> list[Setting]:
    """The points of Figure 8 for one option; none where no two groups differ in it alone."""
    curves: dict[str, dict[str, Group]] = {}
    for group in groups:
        options = dict(group.request["method_options"])
        if option in options:
            value = options.pop(option)
            left = {name: item for name, item in group.request.items() if name not in ("seed", *LABELS)}
            rest = {**left, "method_options": options, "scored": [group.score.network, group.score.protocol_hash]}
            curves.setdefault(canonical(rest), {})[canonical(value)] = group
    several = [list(found.values()) for found in curves.values() if len(found) > 1]
    return [
        point
        for number, members in enumerate(several, start=1)
        for point in sorted((_setting(group, option, number) for group in members), key=_in_order)
    ]


def _setting(group: Group, option: str, curve: int) -> Setting:
    run, score, value = group.run, group.score, group.request["method_options"][option]
    mean, sd = mean_and_sd([100 * s.accuracy for _, s in group.pairs])
    shown = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    return Setting(
        curve, run.dataset, run.method, run.parametrisation or "", run.ipc, score.network, score.protocol, option,
        shown, mean, sd, len(group.pairs), group.runs,
    )  # fmt: skip


def _in_order(setting: Setting) -> tuple[float, str]:
    return (setting.value, "") if isinstance(setting.value, float) else (0.0, setting.value)
