"""Making a plan: everything as published, or as much of it as a budget of time holds."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from esp.errors import EspError, InputError
from esp.evaluation import Protocol
from esp.protocols import PROTOCOLS
from espctl.jobs.compute import FLOPS_PER_SECOND
from espctl.services import condense
from espctl.services.project import Project
from espctl.services.protocols import find as find_protocol
from espctl.services.reproduction import plan
from espctl.services.reproduction.gauge import Gauge, Trial
from espctl.services.reproduction.plan import Asked, Cell, ExpertWork, Plan, Problem, Scoring, Work

USABLE = 0.85
"""Of the budget that is planned with: starting processes and a machine that gets busier take the rest."""

PROBING = 2.5
"""Seconds that measuring a method takes."""

EXPERTS, SCORES = 0.12, 0.25
"""Parts of it for experts and for scoring; what they leave is for condensing."""

WEIGHTS = {"esp": 3.0}
"""Methods get equal parts but for these: ESP starts from noise, and its first hundreds of steps only lead out of it."""

FAR_TOO_MUCH = 8.0
"""When the quick presets take so many times what there is, networks are halved once more."""

LADDER = ((20, 30), (10, 30), (5, 25), (3, 20), (2, 20), (2, 12), (1, 10), (1, 6))
"""Numbers of experts and their epochs, the first that fits; the first is what the quick presets are meant for."""

LEAST_STEPS, LEAST_EPOCHS, ENOUGH_EPOCHS = 5, 50, 100
FEW_SEEDS = 3
CUTS: dict[str, int] = {
    "real_batch": 64, "test_batch": 32, "train_images": 256, "student_steps": 20, "decoder_pretrain": 100,
}  # fmt: skip
"""Options that are lowered to this where a quick preset does not fit the budget."""

Place = tuple[str, int, str]
"""Data set, images per class and method of a condensation."""
Store = tuple[str, str, str]
"""Data set, network and pixel space of experts."""
Trials = Mapping[Place, Trial]
Experts = dict[Store, ExpertWork]
Choice = tuple[Trial, int, str]
"""A condensation with its number of steps, and the options that are neither the preset's nor the table's, in words."""


@dataclass
class Planner:
    """Plans one request."""

    project: Project
    asked: Asked
    on_look: Callable[[str], None]
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gauge = Gauge(self.project, self.asked, self.on_look)
        self.groups: dict[Place, list[Cell]] = {}  # cells that one condensation serves
        for cell in plan.cells(self.asked):
            self.groups.setdefault((cell.dataset, cell.ipc, cell.method), []).append(cell)

    def make(self) -> Plan:
        """The plan at the level that was asked for, or at the best that fits the budget.

        Raises:
            InputError: nothing of it can be made, or the budget is too short for the least of it.
        """
        begun = time.monotonic()
        level = self.asked.level or ("paper" if self._may_be_paper() else "quick")
        trials = self._trials(level)
        made = self._uncut(trials) if level == "paper" else None
        if made is None or (not self.asked.level and 0 < self.asked.budget < made.seconds):
            trials = self._trials("quick")
            made = self._cut(trials, time.monotonic() - begun)
        return dataclasses.replace(made, problems=tuple(self.problems))

    def _may_be_paper(self) -> bool:
        """Whether there is no budget, or one that the arithmetic of the paper's presets alone does not exceed."""
        if not self.asked.budget:
            return True
        speed = FLOPS_PER_SECOND[self.gauge.device.type]
        speed *= self.asked.threads if self.gauge.device.type == "cpu" else 1
        least = 0.0
        for place in self.groups:
            try:
                trial = self.gauge.trial(*place, "paper", whitened=False)
            except EspError:
                continue  # it is a problem at every level
            least += condense.flops(trial.task, trial.method) / speed
            if least > self.asked.budget * self.asked.jobs:
                return False
        return True

    def _trials(self, level: str) -> dict[Place, Trial]:
        found: dict[Place, Trial] = {}
        self.problems.clear()
        for place in self.groups:
            try:
                found[place] = self.gauge.trial(*place, level)
            except EspError as error:
                self.problems.append(Problem(*place, error.message, error.hint))
        if not found:
            first = self.problems[0]
            raise InputError(first.message, first.hint)
        return found

    def _uncut(self, trials: Trials) -> Plan:
        """Everything as published."""
        batch = self.project.settings.experts.batch
        experts: Experts = {}
        for trial in (trial for trial in trials.values() if trial.method.needs_experts):
            before, (count, epochs) = experts.get(_store(trial)), trial.preset.experts or LADDER[0]
            count, epochs = (max(count, before.count), max(epochs, before.epochs)) if before else (count, epochs)
            seconds = count * self.gauge.expert_seconds(trial.task.data, trial.task.network, batch, epochs)
            experts[_store(trial)] = ExpertWork(*_store(trial), count, epochs, batch, seconds)
        works = []
        for place, trial in trials.items():
            scorings = tuple(
                self.gauge.scoring(trial, cell.network, self.protocol(cell), self.gauge.seeds, "paper")
                for cell in self.groups[place]
            )
            self.on_look(f"{trial.name} steps")
            works.append(_work(place, (trial, trial.method.steps, ""), experts, scorings, "paper"))
        return Plan(self.asked, "paper", tuple(experts.values()), tuple(works))

    def protocol(self, cell: Cell) -> Protocol:
        """The protocol of a cell's published number, or the settings'; `dsa` for one with a network of its own."""
        known = plan.published_of(self.asked, cell)
        names = [name for name in (known.protocols if known else ()) if name in PROTOCOLS]
        found = find_protocol(self.project, names[0] if names else self.project.settings.evaluate.protocol)
        return find_protocol(self.project, "dsa") if found.network or found.steps else found

    def _cut(self, trials: Trials, spent: float) -> Plan:
        """The quick presets, or as much of them as the budget holds."""
        asked, begun = self.asked, time.monotonic() - spent
        while True:
            usable = asked.budget * USABLE - (time.monotonic() - begun) - PROBING * len(trials)
            budget = max(0.0, usable) * asked.jobs if asked.budget else math.inf
            experts = self._cut_experts(trials, budget)
            scorings = self._cut_scores(trials, budget * SCORES)
            left = budget - sum(e.seconds for e in experts.values())
            left -= sum(scoring.seconds for group in scorings.values() for scoring in group)
            lower = {place: self._lowered(place, trial, experts) for place, trial in trials.items()}
            if not self.gauge.can_halve or left == math.inf or self._need(lower) <= FAR_TOO_MUCH * left:
                break
            self.gauge.halve()
            trials = self._trials("quick")
        whole = {place: self._fitted(place, trial, experts, {}) for place, trial in trials.items()}
        chosen = _shares(whole, lower, left)
        works = [_work(place, choice, experts, scorings[place], "quick") for place, choice in chosen.items()]
        uncut = not any(work.note for work in works)
        uncut = uncut and not any("@" in scoring.protocol for group in scorings.values() for scoring in group)
        made = Plan(asked, "quick" if uncut else "cut", tuple(experts.values()), tuple(works))
        if asked.budget and made.seconds > 1.5 * asked.budget:
            raise InputError(
                f"the least that makes sense takes about {made.seconds / 60:.0f} minutes, more than the budget",
                f"give --budget {math.ceil(made.seconds / 60 * 1.3)}m, or fewer cells with --method and --ipc",
            )
        return made

    def _need(self, lower: Trials) -> float:
        """Seconds of the quick presets with lowered options."""
        total = 0.0
        for trial in lower.values():
            self.on_look(f"{trial.name} steps")
            total += trial.pace.seconds(trial.method.steps)
        return total

    def _cut_experts(self, trials: Trials, budget: float) -> Experts:
        needing = {_store(trial): trial for trial in trials.values() if trial.method.needs_experts}
        found: Experts = {}
        for store, trial in needing.items():
            data = trial.task.data
            batch = 256 if len(data.train_images) >= 10_000 else 64  # a small set would have few steps in an epoch
            each = self.gauge.expert_seconds(data, trial.task.network, batch, 1)
            allowed = budget * EXPERTS / len(needing)
            count, epochs = next((rung for rung in LADDER if rung[0] * rung[1] * each <= allowed), LADDER[-1])
            found[store] = ExpertWork(*store, count, epochs, batch, count * epochs * each)
        return found

    def _cut_scores(self, trials: Trials, budget: float) -> dict[Place, tuple[Scoring, ...]]:
        """Scores of every set by one length of the protocol, as long as their part of the budget holds."""
        base = find_protocol(self.project, self.project.settings.evaluate.protocol)

        def made(epochs: int, seeds: int) -> dict[Place, tuple[Scoring, ...]]:
            cut = base.with_epochs(epochs)
            return {
                place: tuple(self.gauge.scoring(trial, c.network, cut, seeds, "quick") for c in self.groups[place])
                for place, trial in trials.items()
            }

        def longest(seeds: int) -> int:
            def fits(epochs: int) -> bool:
                return sum(scoring.seconds for group in made(epochs, seeds).values() for scoring in group) <= budget

            return _largest(fits, LEAST_EPOCHS, base.recipe.epochs)

        seeds, epochs = self.gauge.seeds, longest(self.gauge.seeds)
        if epochs < min(base.recipe.epochs, ENOUGH_EPOCHS) and not self.asked.seeds and seeds > FEW_SEEDS:
            seeds, epochs = FEW_SEEDS, longest(FEW_SEEDS)
        return made(epochs, seeds)

    def _lowered(self, place: Place, trial: Trial, experts: Experts) -> Trial:
        values = dataclasses.asdict(trial.method)  # type: ignore[call-overload]
        changed = {name: str(most) for name, most in CUTS.items() if values.get(name, 0) > most}
        return self._fitted(place, trial, experts, changed)

    def _fitted(self, place: Place, trial: Trial, experts: Experts, changed: Mapping[str, str]) -> Trial:
        """The same with options changed, and with segments that fit the experts."""
        values = dataclasses.asdict(trial.method)  # type: ignore[call-overload]
        fitting = dict(changed)
        if trial.method.needs_experts and "segment" in values:
            epochs = experts[_store(trial)].epochs
            segment = min(values["segment"], max(1, 3 * epochs // 10))
            start = min(values.get("start_max", 0), epochs - segment)
            for name, value in (("segment", segment), ("start_max", start)):
                if name in values and values[name] != value:
                    fitting[name] = str(value)
        return self.gauge.trial(*place, "quick", fitting) if fitting else trial


def _shares(whole: Trials, lower: Trials, left: float) -> dict[Place, Choice]:
    """Steps of every condensation: a part of the time by `WEIGHTS`, and what one does not need is for the others."""
    if left == math.inf:
        return {place: (trial, trial.method.steps, _note(trial)) for place, trial in whole.items()}
    weights = {place: WEIGHTS.get(trial.name, 1.0) for place, trial in lower.items()}
    need = {place: trial.pace.seconds(trial.method.steps) / weights[place] for place, trial in lower.items()}
    found: dict[Place, Choice] = {}
    for place in sorted(need, key=lambda place: need[place]):  # the cheapest leave the most
        part = weights[place] / sum(weight for other, weight in weights.items() if other not in found)
        found[place] = _choose(whole[place], lower[place], left * part)
        left -= lower[place].pace.seconds(found[place][1])
    return {place: found[place] for place in lower}


def _choose(whole: Trial, lower: Trial, share: float) -> Choice:
    """The quick preset where it fits its share of time, else as many steps as do, with lowered options."""
    if lower.pace.seconds(lower.method.steps) <= share:
        fits = whole.method == lower.method or whole.pace.seconds(whole.method.steps) <= share
        chosen = whole if fits else lower
        return chosen, chosen.method.steps, _note(chosen)
    if not lower.method.steps:  # a selection is what it is
        return lower, 0, _note(lower)
    pace = lower.pace
    warm = min(pace.warm_steps, lower.method.steps - LEAST_STEPS)
    main = (share - pace.start - warm * pace.warm_up) / max(pace.step, 1e-6)
    steps = max(plan.rounded(warm + main), warm + LEAST_STEPS)
    changed = {**lower.options, "steps": str(steps)}
    method = condense.method_options(lower.name, changed, lower.preset.options)
    trial = dataclasses.replace(lower, options=changed, method=method)
    trial.__dict__["pace"] = pace  # the same steps, fewer of them
    return trial, steps, _note(trial)


def _work(
    place: Place, choice: Choice, experts: Experts, scorings: tuple[Scoring, ...], preset: str
) -> Work:  # fmt: skip
    trial, steps, note = choice
    number, count = None, 0
    if trial.method.needs_experts:
        number, count = list(experts).index(_store(trial)), experts[_store(trial)].count
        count = min(count, (trial.preset.experts or (count, 0))[0]) if preset == "paper" else count
    return Work(
        *place, trial.name, preset, trial.options, steps, trial.task.network.spec, trial.task.data.space, number, count,
        trial.pace.seconds(steps), scorings, note,
    )  # fmt: skip


def _store(trial: Trial) -> Store:
    return trial.task.data.name, trial.task.network.spec, trial.task.data.space


def _note(trial: Trial) -> str:
    own = {name: value for name, value in trial.options.items() if name not in plan.ABLATED.get(trial.label, {})}
    return " ".join(f"{name}={value}" for name, value in own.items())


def _largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest round number between `least` and `most` that fits, or `least`."""
    if fits(most):
        return most
    low, high = least, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(least, plan.rounded(low))
