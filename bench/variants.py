"""What ESP leaves open, compared on held-out training images: the test images are never looked at.

The set is condensed from nine tenths of the training images by experts that saw no others, and networks trained on it
are scored on the last tenth. One line of JSON is kept for each variant and seed as it comes; those that are there are
not done again. `python -m bench.gpu` starts this.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.campaign import PLANS, Options, Variant
from esp.core import State, Task, condense, synthetic_parameters
from esp.data.store import load
from esp.errors import DivergedError
from esp.evaluation import Evaluator
from esp.methods.esp import ESP
from esp.networks.flat import build as build_network
from esp.parametrisation import Frame, build, decode_all
from esp.recipes import Protocol
from esp.trajectory import Experts, open_trajectory
from espctl.jobs import pool
from espctl.jobs.compute import CHUNK
from espctl.services.project import Project
from espctl.services.protocols import find

HELD_OUT = 0.1


@dataclass(frozen=True)
class Cell:
    """One variant and seed, and where the experts are."""

    size: str
    home: Path
    store: str
    variant: Variant
    seed: int
    deadline: float


def main() -> None:
    """Score variants until time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=PLANS, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--store", required=True, help="experts on the training images that are not held out")
    parser.add_argument("--output", type=Path, required=True, help="the file of lines")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    chosen = parser.parse_args()
    plan, deadline = PLANS[chosen.size], time.monotonic() + chosen.seconds

    def keep(variants: Sequence[Variant]) -> None:
        known = {(line["name"], line["seed"]) for line in read(chosen.output)}
        cells = [
            Cell(chosen.size, chosen.home, chosen.store, variant, seed, deadline)
            for seed in range(plan.variant_seeds)
            for variant in variants
            if (variant.name, seed) not in known
        ]
        for cell, line in pool.run_all(_line, cells, chosen.jobs, lambda _: None):
            if line is None:
                continue
            with chosen.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{cell.variant.name}, seed {cell.seed}: {line['accuracies'] or line['error']}", flush=True)

    keep(plan.norms())
    if best := best_of(read(chosen.output)):
        keep(plan.around(best))


@cache
def _task(size: str, home: Path, store: str) -> tuple[Task, Protocol]:
    """What is condensed, and how it is judged; once in each process, for its programs are compiled once."""
    plan, project = PLANS[size], Project.open({"home": home})
    data = load(plan.dataset, project.paths.data, project.paths.raw).held_out(HELD_OUT)
    network = build_network(plan.network, data.shape, data.num_classes)
    paths = sorted((project.paths.experts / store).glob("expert-*.safetensors"))
    experts = Experts(tuple(open_trajectory(path) for path in paths))
    stored = build("latent", Frame(data.num_classes, 1, data.shape), {})
    task = Task(data, network, stored, experts, torch.device(plan.device), CHUNK[plan.device], plan.device == "cuda")
    return task, find(project, "dsa").with_epochs(plan.variant_epochs)


def _line(cell: Cell, _: pool.Report) -> dict[str, Any] | None:
    """One variant condensed and scored; None when time is up before it is done."""
    begun, plan, variant = time.monotonic(), PLANS[cell.size], cell.variant
    if begun > cell.deadline:
        return None
    options = {**plan.options.get("esp", {}), **variant.options, "steps": plan.variant_steps}
    task, protocol = _task(cell.size, cell.home, cell.store)
    assert task.experts is not None
    if variant.experts:
        task = replace(task, experts=Experts(task.experts.trajectories[: variant.experts]))
    method = ESP(start_max=plan.start_max(options["segment"]), **options)
    found: list[float] = []
    error, inside = "", None
    state: State = {}
    try:
        for latest, metrics in condense(method, task, cell.seed):
            state, inside = latest, metrics.get("inside")
            if time.monotonic() > cell.deadline:
                return None
        with torch.no_grad():
            images = decode_all(task.parametrisation, synthetic_parameters(state))
        judge = Evaluator(task.network, protocol, task.data, images, task.labels, task.device, task.chunk, task.compile)
        scores = judge.scores(range(plan.variant_networks))
        found = [score.accuracy for score in scores if not isinstance(score, DivergedError)]
    except DivergedError as diverged:
        error = diverged.message
    return {
        "what": variant.what, "name": variant.name, "options": variant.options,
        "experts": len(task.experts.trajectories), "seed": cell.seed, "steps": plan.variant_steps,
        "protocol": protocol.name, "network": plan.network, "dataset": plan.dataset,
        "judge": f"held-out {HELD_OUT:g} of the training images", "accuracies": found,
        "inside": None if error or inside is None else float(inside), "error": error,
        "seconds": time.monotonic() - begun,
    }  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """The lines that are there; one that was cut short does not count."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def means(lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Variant -> mean accuracy of its networks for each seed; 0 where it diverged."""
    found: dict[str, list[float]] = {}
    for line in lines:
        found.setdefault(line["name"], []).append(statistics.fmean(line["accuracies"]) if line["accuracies"] else 0.0)
    return found


def best_of(lines: Sequence[dict[str, Any]], what: str = "norm") -> Options:
    """Options of the variant with the highest mean over seeds, of those with the most seeds; none without lines."""
    of = [line for line in lines if line["what"] == what]
    scores = means(of)
    if not scores:
        return {}
    most = max(map(len, scores.values()))
    name = max((one for one in scores if len(scores[one]) == most), key=lambda one: statistics.fmean(scores[one]))
    options: Options = next(line["options"] for line in of if line["name"] == name)
    return options


def gains(lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Variant of the norm -> by how much its accuracy is above that without L_Proj, with each seed that both have."""
    scores = {(line["name"], line["seed"]): means([line])[line["name"]][0] for line in lines if line["what"] == "norm"}
    bases = {line["options"]["dm_reduction"]: line["name"] for line in lines if line["options"].get("beta") == 0}
    found: dict[str, list[float]] = {}
    for line in lines:
        base = bases.get(line["options"].get("dm_reduction"))
        if line["what"] == "norm" and line["name"] != base and (base, line["seed"]) in scores:
            gain = scores[line["name"], line["seed"]] - scores[str(base), line["seed"]]
            found.setdefault(line["name"], []).append(gain)
    return found


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds of every variant, in percent."""
    head = "| ablation | variant | held-out accuracy % | seeds x networks | above no L_Proj | inside |"
    rows, gained = [head, "| --- " * 6 + "|"], gains(lines)
    for name, values in means(lines).items():
        of = [line for line in lines if line["name"] == name]
        inside = [line["inside"] for line in of if line["inside"] is not None]
        share = f"{statistics.fmean(inside):.3f}" if inside else "diverged"
        count = f"{len(values)} x {max(len(line['accuracies']) for line in of)}"
        above = _percent(gained[name], "+") if name in gained else ""
        rows.append(f"| {of[0]['what']} | {name} | {_percent(values)} | {count} | {above} | {share} |")
    first = lines[0]
    rows += ["", f"ESP on {first['dataset']}, one image per class, {first['network']}, {first['experts']} experts, "
             f"{first['steps']} steps, protocol {first['protocol']}, scored on {first['judge']}, which "
             "neither the set nor the experts have seen. Mean ± standard deviation over seeds of the condensation. "
             "Above no L_Proj: the difference to the row without it and with the same L_DM, seed by seed. "
             "Inside: length of the projected gradient over that of the gradient, at the last step."]  # fmt: skip
    return "\n".join(rows) + "\n"


def _percent(values: Sequence[float], sign: str = "") -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):{sign}.1f}{spread}"


if __name__ == "__main__":
    main()
