"""Rows of a table as grids of text: headings, cells and captions, the same for every format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from espctl.render import clean
from espctl.report.model import Cost, Grid, Measures, Row
from espctl.report.published import SOURCE, highest

TITLES = {
    "1": "Table 1: accuracy",
    "2": "Table 2: accuracy on other networks",
    "3": "Table 3: accuracy on EfficientNetV2-S",
    "4": "Table 4: ablation of ESP's losses",
}
NOTE = (
    "Accuracy in percent after the last epoch, mean ± standard deviation over n networks; best is the mean of the best "
    "checks, chosen on the test set. Published: {source}, Table {table}."
)
MARKS = {
    "*": "* not comparable: another network, protocol, protocol length or preset than published.",
    "?": "? the protocol of the published value is not stated; the one here is a candidate.",
}
MIXED = "Mixed presets: only rows of the preset paper use a method's own options."
_MOVABLE = ("data set", "ipc", "network", "protocol", "preset")
_RUN = re.compile(r"(?<=espctl evaluate) \S+ ")
_UNSAID = {("preset", value) for value in ("paper", "default", "-")}
_NAMED = ("method", "stored", "ipc", "network", "protocol", "accuracy")
_MEASURES = (
    "HLR = accuracy on all real images minus that on the synthetic set; IOR = accuracy minus that of random selection "
    "of equal size, same protocol; LRS from both, ARS from IOR with and without augmentation: 0 worst, 100 best."
)
_COST = (
    "Cost: seconds of wall time to condense, to train the experts that were used, and to train and test one network; "
    "peak memory of condensing."
)


def main(table: str, rows: Sequence[Row], trace: bool = False, all_runs: bool = False) -> Grid:
    """The table itself; columns that say the same in every row go into the caption."""
    lines, since = [_cells(row) for row in rows], any(row.best_known for row in rows)
    for number, (line, row) in enumerate(zip(lines, rows, strict=True), start=1):
        line.update(_optional(row, all_runs, since))
        line["options"] = line.pop("options")  # what is longest stands last
        if trace:
            line["trace"] = f"[{number}]"
    shared = _shared(lines)
    empty = [name for name in lines[0] if name in ("options", "preset") and all(line[name] == "-" for line in lines)]
    columns = [name for name in lines[0] if name not in shared and name not in empty]
    caption = NOTE.format(source=SOURCE, table=table) + _said(shared) + _remarks(rows, "preset" in columns)
    cells = tuple(tuple(line[name] for name in columns) for line in lines)
    return Grid(_title(table, rows), tuple(columns), cells, caption, _numbers(rows))


def trace(rows: Sequence[Row]) -> Grid:
    """Every trained network behind every number, by the number of its row."""
    cells = [
        (f"[{number}]", one.run, str(one.seed), f"{100 * one.accuracy:.2f}", one.file or "-")
        for number, row in enumerate(rows, start=1)
        for one in row.evaluations
    ]
    columns = ("row", "run", "seed", "accuracy", "evaluation")
    caption = "Every network behind the numbers: accuracy in percent, and its file in the project's folder."
    return Grid("Trace", columns, tuple(cells), caption, tuple(int(cell[0][1:-1]) for cell in cells))


def cost(rows: Sequence[Row]) -> Grid:
    """What each number cost, as a table of its own."""
    return _beside("Cost", rows, [_cost(row.cost) if row.cost else {} for row in rows])


def measures(rows: Sequence[Row]) -> Grid:
    """The measures beside accuracy, as a table of its own."""
    return _beside("Measures beside accuracy", rows, [_measures(row.measures) if row.measures else {} for row in rows])


def _beside(title: str, rows: Sequence[Row], found: Sequence[dict[str, str]]) -> Grid:
    lines = []
    for row, more in zip(rows, found, strict=True):
        cells = _cells(row)
        if more:
            lines.append({**{name: cells[name] for name in _NAMED}, **more, "options": cells["options"]})
    shared = _shared(lines)
    columns = [name for name in lines[0] if name not in shared]
    caption = (_COST if title == "Cost" else _measures_remark(rows)) + _said(shared)
    shown = tuple(tuple(line[name] for name in columns) for line in lines)
    return Grid(title, tuple(columns), shown, caption, tuple(filter(None, _numbers(rows))))


def _numbers(rows: Sequence[Row]) -> tuple[int, ...]:
    """The rows that runs stand behind, by their numbers; 0 for those that only repeat what was published."""
    return tuple(number if row.runs else 0 for number, row in enumerate(rows, start=1))


def best_known(rows: Sequence[Row]) -> Grid:
    """What has been published since for the data sets and images per class of the rows."""
    found = {(best.dataset, best.ipc, best.kind, best.method): best for row in rows for best in row.best_known}
    cells = [
        (b.dataset, str(b.ipc), b.kind, b.method, accuracy(b.mean, b.sd), b.labels, b.source, b.note or "-")
        for b in found.values()
    ]
    columns = ("data set", "ipc", "class", "method", "accuracy", "labels", "source", "note")
    caption = "Best known since, in percent; other networks and protocols than here, so no row is comparable with ours."
    return Grid("Best known", columns, tuple(cells), caption)


def grids(table: str, rows: Sequence[Row], traced: bool = False, all_runs: bool = False) -> list[Grid]:
    """The table, and what was asked beside it."""
    found = [main(table, rows, traced, all_runs)]
    found += [best_known(rows)] if any(row.best_known for row in rows) else []
    found += [measures(rows)] if any(row.measures for row in rows) else []
    found += [cost(rows)] if any(row.cost for row in rows) else []
    return [*found, trace(rows)] if traced else found


def accuracy(mean: float | None, sd: float | None) -> str:
    """Percent as `63.0 ± 0.4`, `63.0` without a deviation, `-` without a value."""
    if mean is None:
        return "-"
    return f"{mean:.1f}" if sd is None else f"{mean:.1f} ± {sd:.1f}"


def mark(row: Row) -> str:
    """What stands behind the difference: `*` not comparable, `?` the published protocol is inferred, or nothing."""
    if row.difference is None:
        return ""
    return " *" if not row.comparable else "" if row.certain else " ?"


def _title(table: str, rows: Sequence[Row]) -> str:
    datasets = {row.dataset for row in rows}
    return f"{TITLES[table]}, {clean(datasets.pop())}" if len(datasets) == 1 else TITLES[table]


def _cells(row: Row) -> dict[str, str]:
    return {
        "data set": clean(row.dataset),
        "method": clean(row.method),
        "stored": clean(row.stored or "-"),
        "ipc": str(row.ipc or "full"),
        "network": clean(row.network),
        "protocol": clean(row.protocol or "-"),
        "preset": clean(row.preset or "-"),
        "accuracy": accuracy(row.mean, row.sd),
        "n": str(row.n),
        "published": accuracy(row.published, row.published_sd),
        "diff": "-" if row.difference is None else f"{row.difference:+.1f}{mark(row)}",
        "best": accuracy(row.best, None),
        "options": clean(row.options or "-"),
    }


def _optional(row: Row, all_runs: bool, since: bool) -> dict[str, str]:
    found = {"run": " ".join(row.runs) or "-"} if all_runs else {}
    if since:
        best = highest(row.best_known)
        found["best known"] = f"{best.mean:.1f} {best.method}" if best else "-"
    return found


def _measures(measures: Measures) -> dict[str, str]:
    named = {"HLR": measures.hlr, "IOR": measures.ior, "LRS": measures.lrs, "ARS": measures.ars}
    return {name: "-" if value is None else f"{100 * value:.1f}" for name, value in named.items()}


def _cost(cost: Cost) -> dict[str, str]:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"

    return {
        "condense s": seconds(cost.seconds),
        "experts s": seconds(cost.expert_seconds),
        "evaluate s": seconds(cost.evaluate_seconds),
        "peak MB": "-" if cost.peak_memory_bytes is None else f"{cost.peak_memory_bytes / 1e6:.0f}",
        "device": clean(cost.device),
    }


def _said(shared: Mapping[str, str]) -> str:
    """What holds for every row, as a part of the caption."""
    shown = {name: value for name, value in shared.items() if (name, value) not in _UNSAID}
    return clean("".join(f" {name.replace('data set', 'Data set')}: {value}." for name, value in shown.items()))


def _shared(lines: Sequence[dict[str, str]]) -> dict[str, str]:
    """Columns that say the same in every row; those of a table with one row are worth their place, but for two."""
    names = [name for name in _MOVABLE if len(lines) > 1 or name in ("data set", "preset")]
    return {name: lines[0][name] for name in names if len({line.get(name) for line in lines}) == 1 and name in lines[0]}


def _remarks(rows: Sequence[Row], mixed: bool) -> str:
    found = [text for sign, text in MARKS.items() if any(mark(row).strip() == sign for row in rows)]
    if mixed:
        found.append(MIXED)
    return "".join(f" {text}" for text in found)


def _measures_remark(rows: Sequence[Row]) -> str:
    """The definitions, where the accuracy on real images comes from, and what makes the empty cells."""
    measured = [row.measures for row in rows if row.measures]
    found = [_MEASURES, *(f"HLR uses {origin}." for origin in sorted({m.real_from for m in measured if m.real_from}))]
    needed = dict.fromkeys(_RUN.sub(" RUN ", command) for m in measured for command in m.needed)
    found += [f"For the empty cells: {'; '.join(needed)}."] if needed else []
    return " ".join(map(clean, found))
