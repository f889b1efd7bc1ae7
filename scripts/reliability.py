"""The page of what is promised: each promise, how it is tested, and the last figures of the harnesses in results/."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured"
Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Promise:
    """What is promised, how it is tested, and what tells the last figures; None where the suite is all there is."""

    text: str
    tests: str
    figures: Callable[[Figures], str] | None = None


def page(results: Path) -> str:
    """The page, from the newest file of each harness in `results`."""
    found = {kind: newest(results, kind) for kind in ("torture", "together", "fuzz")}
    rows = [f"| {one.text} | {one.tests} | {_figures(one, found)} |" for one in PROMISES]
    head = [
        "# Why it can be relied on\n",
        "What is promised, the tests that hold it, and what the harnesses last found.\n",
    ]
    table = ["| promise | tests | last figures |", "| --- | --- | --- |", *rows]
    return "\n".join([*head, *table, "", *_sources(found), *LEFT]) + "\n"


def newest(results: Path, kind: str) -> dict[str, Any]:
    """The newest `DATE-DEVICE-COMMIT-KIND.json` with its name; empty where there is none."""
    paths = sorted(results.glob(f"*-{kind}.json"), key=lambda path: (_read(path)["date"], path.name))
    return {**_read(paths[-1]), "file": paths[-1].name} if paths else {}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _figures(promise: Promise, found: Figures) -> str:
    if promise.figures is None:
        return "in the suite"
    return promise.figures(found) or NOT_MEASURED


def _survived(part: str, by: str) -> Callable[[Figures], str]:
    def text(found: Figures) -> str:
        if not (one := found["torture"].get(part)) or not one["all"]:
            return ""
        kinds = ", ".join(f"{name} {count['survived']}/{count['all']}" for name, count in sorted(one[by].items()))
        return f"{one['survived']} of {one['all']} survived ({kinds})"

    return text


def _together(found: Figures) -> str:
    if not (one := found["together"]):
        return ""
    lost = len(one["wrong"])
    return f"{one['writers']} processes, {one['operations']:,} operations, {lost} lost or failed"


def _once(found: Figures) -> str:
    if not (one := found["together"].get("once")):
        return ""
    return ", ".join(f"{name} {'once' if once else 'MORE THAN ONCE'}" for name, once in one.items())


def _fuzzed(found: Figures) -> str:
    if not (one := found["fuzz"]):
        return ""
    executed = sum(target["executions"] for target in one["targets"].values())
    return f"{len(one['targets'])} parsers, {executed:,} inputs, {len(one['findings'])} findings"


def _sources(found: Figures) -> list[str]:
    """Where the figures come from, and how to make them again."""
    lines = []
    commands = {"torture": "make torture", "together": "python -m tests.torture.together", "fuzz": "make fuzz"}
    for kind, one in found.items():
        if one:
            seed = f" with seed {one['seed']}" if "seed" in one else ""
            lines.append(f"- `{commands[kind]}`{seed}: `results/{one['file']}`, {one['date'][:10]}, {one['device']}.")
        else:
            lines.append(f"- `{commands[kind]}`: {NOT_MEASURED}.")
    return ["The figures come from:\n", *lines, ""]


PROMISES = (
    Promise(
        "A command that is killed at any moment leaves a sound project, and goes on to the bytes of one that was not",
        "`make torture`, `tests/espctl/test_kill.py`",
        _survived("kills", "by_signal"),
    ),
    Promise(
        "A write that fails (no space, a disk error, a read-only file system) does the same",
        "`make torture`",
        _survived("writes", "by_errno"),
    ),
    Promise(
        "Processes that work on one project at the same time lose nothing: labels, scores, runs, experts; folders and "
        "database agree, and the database made anew from the folders is the same",
        "`python -m tests.torture.together`, `tests/espctl/test_together.py`",
        _together,
    ),
    Promise(
        "What several processes ask for at the same moment is made once",
        "`python -m tests.torture.together`, `tests/espctl/test_together.py`",
        _once,
    ),
    Promise(
        "Whatever a stranger's file holds, it is refused with a sentence, or read safely; nothing is unpickled",
        "`tests/bad/`, `make fuzz`",
        _fuzzed,
    ),
    Promise(
        "A damaged database is named by every command and made anew from the folders by `espctl db rebuild`",
        "`tests/espctl/test_rebuild.py`",
    ),
    Promise(
        "Databases, run folders, experts and bundles of every released format are read; of a newer one it is said "
        "which version reads it, and which copy of the database this one does",
        "`tests/migrations/`, `tests/espctl/test_golden_folders.py`",
    ),
    Promise(
        "The same request on the same CPU gives the same bytes",
        "`tests/esp/test_methods.py`, `tests/espctl/test_rerun.py`",
    ),
    Promise(
        "A set never stores more numbers than its budget, decoders and labels counted",
        "`tests/esp/test_parametrisation.py`, `tests/esp/test_methods.py`",
    ),
    Promise(
        "Gradients are those of the equations, against float64 finite differences or double backward",
        "`tests/esp/test_derivatives.py` and one file for each method",
    ),
    Promise(
        "A score is the last epoch's; trials of a study never see a test image",
        "`tests/esp/test_evaluation.py`, `tests/espctl/test_tune.py`",
    ),
    Promise(
        "Published and own numbers stand side by side unmarked only when they are comparable",
        "`tests/espctl/test_report_rules.py`",
    ),
    Promise(
        "Files are verified before use, and damage is named",
        "`tests/bad/test_bad_bits.py`, `tests/esp/test_artifact.py`",
    ),
    Promise(
        "Wrong input is one sentence with a remedy, never a traceback",
        "`tests/espctl/test_bad_input.py`, `tests/esp/test_refusals.py`",
    ),
    Promise("These pages say what the program does", "`tests/docs/test_docs.py`"),
)

LEFT = (
    "## What is not promised\n",
    "- The same bits on another machine, another version of torch, or a GPU: only the same request and, up to chance, "
    "the same score.",
    "- The same bits with another number of threads, compiled and not, or with another chunk: sums are taken in "
    "another order. The three are written down with every run, and a resumed run has those that it began with. "
    "The same of all three gives the same bits (`tests/espctl/test_threads.py`). On CUDA not even a repetition is "
    "promised, and divergence is looked for at every tenth step, on a CPU at every one.",
    "- The published numbers. ESP and KFS leave constants and the protocol open; [methods](methods.md) says which. "
    "Every table marks what is not comparable.",
    "- CUDA: the program is written for it, and most of the tests run on a CPU.",
)
