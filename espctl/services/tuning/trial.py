"""Working on the trials of a study: each is a run, condensed from what is not held out and scored on what is.

This is what a worker process does. It writes run folders and the study's own storage, and never opens the database;
whoever started it hears of everything by events:
{"kind": "begun", "trial", "run"}, {"kind": "step", "trial", "share"} and {"kind": "ended", "trial", "run", "state",
"value", "reason"}.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from esp import files
from esp.core import State, Task, learned, synthetic_parameters
from esp.errors import DivergedError, EspError, InputError, OutOfMemoryError
from esp.evaluation import Evaluator
from esp.parametrisation import decode_all, labels
from esp.statistics import mean_and_sd
from espctl import settings as configuration
from espctl.jobs import pool, worker
from espctl.jobs.compute import Compute
from espctl.services import condense
from espctl.services.evaluate import synthetic_of
from espctl.services.project import Project
from espctl.services.protocols import find as find_protocol
from espctl.services.tuning.plan import Plan
from espctl.services.tuning.study import LOOKS, Claim, End, Study
from espctl.store.folder import TRIAL_SCORE

POLL = 0.5  # seconds between two looks at whether a trial of somebody else was left behind
FAILURES = 3
"""So many failed trials in a row are the fault of the study and not of the trials."""
_PATIENCE = 3.0  # seconds for whoever looks at the folder of a trial, to tidy up
SHORTER = 2
"""A look trains for so many times fewer epochs than the score does."""
SCORE_FILE = TRIAL_SCORE


class _Pruned(Exception):
    """The trial is not worth going on with."""


@dataclass(frozen=True)
class Work:
    """What every worker of a study needs to know; crosses processes.

    Attributes:
        settings: with the study's method, network and seed.
        goal: trials that the study shall have.
        deadline: seconds since the epoch after which nothing is begun and what is under way is put back.
    """

    settings: configuration.Settings
    study: Path
    goal: int
    deadline: float


def attend(work: Work, report: pool.Report) -> None:
    """Work on trials until there are as many as wanted, or time is up.

    Raises:
        KeyboardInterrupt: the trial under way was saved and put back.
        EspError: the first trial, or several in a row, failed; or something that is not a trial's own fault.
    """
    study, failures = Study(work.study), 0
    while time.time() < work.deadline:
        claim = study.claim(work.goal)
        if claim is None:
            if not study.busy():
                return
            time.sleep(POLL)
            continue
        error = _attempt(study, claim, work, report)
        failures = failures + 1 if error else 0
        if error and (claim.number == 0 or failures >= FAILURES):
            raise error


def _attempt(study: Study, claim: Claim, work: Work, report: pool.Report) -> EspError | None:
    """One trial from its claim to its end; the error when it failed."""
    trial = _Trial(study, claim, Project(work.settings), work.deadline, report)
    try:
        value = trial.carry_out()
    except _Pruned as end:
        trial.end("pruned", None, str(end))
    except DivergedError as error:
        trial.end("pruned", None, error.message)
    except (InputError, OutOfMemoryError) as error:
        trial.end("failed", None, error.message)
        return error
    except KeyboardInterrupt:
        study.release(claim)
        if time.time() < work.deadline:
            raise
        return None  # time is up
    except BaseException:
        study.release(claim)
        raise
    else:
        trial.end("complete", value, None)
    return None


@dataclass
class _Trial:
    """A trial in this process's hands."""

    study: Study
    claim: Claim
    project: Project
    deadline: float
    report: pool.Report
    folder: Path | None = None
    steps: int = 0
    intermediate: dict[int, float] = field(default_factory=dict)

    def carry_out(self) -> float:
        """Condense, score, and return the mean accuracy; go on where an earlier attempt stopped."""
        plan = self.study.plan
        self.folder = self._enter(plan)
        self.report({"kind": "begun", "trial": self.claim.number, "run": self.folder.name})
        with worker.locked(self.folder, wait=_PATIENCE):
            before = _read(self.folder / SCORE_FILE)
            if before.get("state") == "pruned":
                raise _Pruned(before["reason"])
            self.intermediate = dict(before.get("intermediate", []))
            if _read(self.folder / "outcome.json").get("state") != "finished":
                worker.work(
                    self.folder,
                    self.project.paths.data,
                    self.project.home,
                    self.project.settings.compute.checkpoint_every,
                    lambda done, values: None,
                    self._watch,
                )
            return self._score(plan)

    def end(self, state: End, value: float | None, reason: str | None) -> None:
        """Write how it ended, then tell the study, then whoever listens."""
        if self.folder is not None:
            self._write(state, value, reason)
            if state != "complete":
                _give_up(self.folder, state, str(reason))
        self.study.tell(self.claim, state, value, reason)
        run = self.folder.name if self.folder else None
        ended = {"trial": self.claim.number, "run": run, "state": state, "value": value, "reason": reason}
        self.report({"kind": "ended", **ended})

    def _enter(self, plan: Plan) -> Path:
        marks = {"study": self.study.name, "trial": self.claim.number, "held_out": plan.held_out}
        request = condense.Request(
            dataset=plan.dataset,
            ipc=plan.ipc,
            options={**plan.fixed, **self.claim.options},
            parametrisation=plan.parametrisation,
            experts=plan.experts,
            expert_count=plan.expert_count,
            preset=plan.preset,
            trial=marks,
        )
        prepared = condense.prepare(self.project, request)
        self.steps = prepared.steps
        folder = condense.trial_folder(self.project, prepared)
        self.study.assign(self.claim.number, folder.name)
        return folder

    def _watch(self, task: Task, state: State) -> None:
        """After every step: stop when time is up, and look whether the trial is worth going on with."""
        self._in_time()
        total, done = self.steps, int(state["step"])
        self.report({"kind": "step", "trial": self.claim.number, "share": done / max(1, total)})
        looks = {round(total * i / LOOKS): i for i in range(1, LOOKS)}
        if done not in looks or done in (0, total) or self.study.plan.pruner == "none":
            return
        images = decode_all(task.parametrisation, synthetic_parameters(state))
        epochs = max(1, self.study.plan.epochs // SHORTER)
        beside = learned(state)
        rate = float(beside["rate"]) if "rate" in beside else None
        score = self._accuracy(task, images, beside.get("labels", labels(task.parametrisation)), rate, epochs, 0)
        self.intermediate[done] = score
        self._write("running", None, None)
        if self.study.report(self.claim.number, looks[done], score):
            raise _Pruned(f"after {done} of {total} steps, at {score:.1%}")

    def _score(self, plan: Plan) -> float:
        """Train the networks that are not trained yet; each score is kept as it comes."""
        assert self.folder is not None
        scores: list[float] = _read(self.folder / SCORE_FILE).get("scores", [])
        described, synthetic = files.read_json(self.folder / "request.json"), synthetic_of(self.folder)
        task = worker.make_task(
            described["request"], Compute(**described["compute"]), self.project.paths.data, self.project.home
        )
        for seed in range(len(scores), plan.seeds):
            made = synthetic.images(), synthetic.targets(), synthetic.rate
            scores.append(self._accuracy(task, *made, plan.epochs, seed))
            self._write("running", None, None, scores)
        value, _ = mean_and_sd(scores)
        self._write("complete", value, None, scores)
        return value

    def _accuracy(
        self, task: Task, images: Tensor, targets: Tensor, rate: float | None, epochs: int, seed: int
    ) -> float:
        """Of one network on the held-out images, which stand where the test images were."""
        protocol = find_protocol(self.project, self.study.plan.protocol).with_epochs(epochs)
        where = task.device, task.chunk, task.compile
        evaluator = Evaluator(task.network, protocol, task.data, images, targets, *where, rate)
        return evaluator.score(seed, lambda _: self._in_time()).accuracy

    def _write(self, state: str, value: float | None, reason: str | None, scores: list[float] | None = None) -> None:
        assert self.folder is not None
        path, plan = self.folder / SCORE_FILE, self.study.plan
        before = _read(path)
        entry = {
            "study": self.study.name,
            "trial": self.claim.number,
            "state": state,
            "value": value,
            "reason": reason,
            "scores": before.get("scores", []) if scores is None else scores,
            "intermediate": [list(look) for look in sorted(self.intermediate.items())],
            "held_out": plan.held_out,
            "protocol": find_protocol(self.project, plan.protocol).with_epochs(plan.epochs).name,
            "network": plan.network,
            "options": self.claim.options,
        }
        files.write_json(path, entry)

    def _in_time(self) -> None:
        if time.time() > self.deadline:
            raise KeyboardInterrupt


def _give_up(folder: Path, state: str, reason: str) -> None:
    """The run of a trial that was pruned or failed says so; it can still be gone on with, from its beginning."""
    described = files.read_json(folder / "request.json")
    if _read(folder / "outcome.json").get("state") != "finished":
        outcome = {
            "state": state,
            "finished": datetime.now(UTC).isoformat(),
            "device": described["compute"]["device"],
            "artifacts": [],
            "error": reason,
        }
        files.write_json(folder / "outcome.json", outcome)
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is no such file."""
    found: dict[str, Any] = files.read_json(path) if path.exists() else {}
    return found
