"""One study on disk: what it asks, Optuna's storage of its trials, and who may work on which.

```
studies/NAME/study.json       what the study asks, written once
studies/NAME/optuna.db        Optuna's own SQLite file: optuna-dashboard opens it
studies/NAME/lock             held while somebody looks and changes, for milliseconds
studies/NAME/trial-0007.lock  held by the process that works on the trial, and gone with it, however it dies
```
A trial whose lock is free while Optuna calls it running was lost by its worker: the next worker takes over the same
trial, so that none is lost and none is counted twice. No heartbeat has to run out first.
"""

from __future__ import annotations

import contextlib
import fcntl
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from esp import files
from esp.errors import ArtifactError, InputError
from esp.rng import Key
from espctl.errors import RunError
from espctl.services.tuning.plan import Plan
from espctl.services.tuning.space import Dimension, Space, from_json, text_of

MAX_ATTEMPTS = 10
"""A trial that killed its worker so many times is given up."""

End = Literal["complete", "pruned", "failed"]
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_NAMES = {**{state: name for name, state in _STATES.items()}, TrialState.RUNNING: "running"}
_BUSY_SECONDS = 60


@dataclass(frozen=True)
class Point:
    """A trial as people see it.

    Attributes:
        state: `running`, `complete`, `pruned` or `failed`.
        value: mean accuracy on the held-out images, or None.
        options: what was searched, as `--set` takes it.
        run: its run, once there is one.
        reason: why it was pruned or failed.
    """

    number: int
    state: str
    value: float | None
    options: Mapping[str, str]
    run: str | None
    reason: str | None
    seconds: float | None


@dataclass(frozen=True)
class Claim:
    """A trial that this process alone works on, until the claim is told or released."""

    number: int
    options: dict[str, str]
    lock: IO[str]


class Study:
    """An open study.

    Args:
        folder: named like the study.

    Raises:
        RunError: there is no such study, or its storage is gone.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "study.json"
        if not path.is_file():
            raise RunError(f"there is no study {folder.name!r}", "espctl tune ls lists the studies")
        body = files.read_json(path)
        try:
            self.folder, self.name, self.created = folder, folder.name, datetime.fromisoformat(body["created"])
            self.plan = Plan(**body["plan"])
            self.space: Space = from_json(self.plan.space)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path} does not describe a study", files.DAMAGED) from error
        if not self.database.is_file():
            raise RunError(
                f"the storage of the study {self.name} is gone: {self.database}",
                "restore it from a copy, or start the study again",
            )
        storage = _storage(self.database)
        weakref.finalize(self, storage.engine.dispose)
        with self._held():
            self._study = optuna.load_study(
                study_name=self.name,
                storage=storage,
                pruner=_pruner(self.plan),
                sampler=self._sampler(0),
            )

    @classmethod
    def create(cls, folder: Path, plan: Plan, first: Mapping[str, float | int | str]) -> Study:
        """Make a study whose first trial is the point `first`; one that is there already is opened.

        Of two processes that come at the same time one makes it; one that dies here leaves nothing half made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder), _quiet():
            if not exists(folder):
                files.write_json(
                    folder / "study.json", {"plan": asdict(plan), "created": datetime.now(UTC).isoformat()}
                )
            if not (folder / "optuna.db").is_file():
                _make_storage(folder, plan, first)
        return cls(folder)

    @property
    def database(self) -> Path:
        """Optuna's file."""
        return self.folder / "optuna.db"

    def claim(self, goal: int) -> Claim | None:
        """A trial to work on: one whose worker died or was stopped, else a new one while there are fewer than `goal`.

        None when there is nothing to do now; `busy` tells whether there may be later.
        """
        with self._held():
            found = self._study.get_trials(deepcopy=False)
            for trial in found:
                if trial.state == TrialState.RUNNING and (lock := self._take(trial.number)):
                    if self._attempt(trial):
                        return self._claimed(trial.number, lock)
                    lock.close()
            if sum(trial.state != TrialState.WAITING for trial in found) >= goal:
                return None
            asked = self._study.ask()
            lock = self._take(asked.number)
            assert lock is not None  # a new number, and nobody else may look now
            return self._claimed(asked.number, lock)

    def busy(self) -> bool:
        """Whether somebody works on a trial."""
        with self._held():
            return any(trial.state == TrialState.RUNNING for trial in self._study.get_trials(deepcopy=False))

    def is_worked_on(self, number: int) -> bool:
        """Whether somebody works on this trial."""
        with self._held():
            if lock := self._take(number):
                lock.close()
            return lock is None

    def report(self, number: int, step: int, value: float) -> bool:
        """Note an intermediate score; whether the trial should be pruned. A score that was noted before stays."""
        with self._held():
            trial = self._trial(number)
            if step not in self._study.get_trials(deepcopy=False)[number].intermediate_values:
                trial.report(value, step)
            return bool(trial.should_prune())

    def assign(self, number: int, run: str) -> None:
        """Note the run of a trial."""
        with self._held():
            self._trial(number).set_user_attr("run", run)

    def tell(self, claim: Claim, state: End, value: float | None, reason: str | None = None) -> None:
        """Finish a trial."""
        with self._held():
            if reason:
                self._trial(claim.number).set_user_attr("reason", reason)
            told = value if state == "complete" else None
            self._study.tell(claim.number, told, _STATES[state], skip_if_finished=True)
            claim.lock.close()
            self._lock_path(claim.number).unlink(missing_ok=True)

    def release(self, claim: Claim) -> None:
        """Put a trial back, to be gone on with by whoever comes next: an orderly stop is no failed attempt."""
        with self._held():
            trial = self._trial(claim.number)
            trial.set_user_attr("attempts", trial.user_attrs.get("attempts", 1) - 1)
            claim.lock.close()

    def points(self) -> list[Point]:
        """Every trial that was begun, by number."""
        with self._held():
            found = self._study.get_trials(deepcopy=False)
        return [self._point(trial) for trial in found if trial.state in _NAMES]

    @contextlib.contextmanager
    def shared(self) -> Iterator[optuna.Study]:
        """Optuna's own view, for its plots and importances."""
        with self._held():
            yield self._study

    def _point(self, trial: FrozenTrial) -> Point:
        state, seconds = _NAMES[trial.state], trial.duration.total_seconds() if trial.duration else None
        value = trial.value if state == "complete" else None
        options = {name: text_of(setting) for name, setting in trial.params.items()}
        attributes = trial.user_attrs
        return Point(trial.number, state, value, options, attributes.get("run"), attributes.get("reason"), seconds)

    def _claimed(self, number: int, lock: IO[str]) -> Claim:
        """Suggest what is not suggested yet: a process may have died in the middle of asking."""
        self._study.sampler = self._sampler(number)
        trial = self._trial(number)
        options = {name: text_of(_suggest(trial, name, dimension)) for name, dimension in self.space.items()}
        return Claim(number, options, lock)

    def _attempt(self, trial: FrozenTrial) -> bool:
        """Count one more attempt; a trial that has had too many is finished as failed, and False returned."""
        attempts = trial.user_attrs.get("attempts", 1) + 1
        live = self._trial(trial.number)
        live.set_user_attr("attempts", attempts)
        if attempts <= MAX_ATTEMPTS:
            return True
        live.set_user_attr("reason", f"its worker was killed {MAX_ATTEMPTS} times")
        self._study.tell(trial.number, state=TrialState.FAIL)
        return False

    def _trial(self, number: int) -> optuna.Trial:
        """A running trial. Optuna has no public way back to one that another process began."""
        return optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)

    def _take(self, number: int) -> IO[str] | None:
        """The lock of a trial, unless another process has it."""
        file = self._lock_path(number).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def _lock_path(self, number: int) -> Path:
        return self.folder / f"trial-{number:04d}.lock"

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A sampler for one trial: what it draws depends on the study's seed, and on the trials before."""
        seed = Key(self.plan.seed).fold("sampler", number).integer() % 2**32
        with _quiet():
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        with _locked(self.folder), _quiet():
            yield


def exists(folder: Path) -> bool:
    """Whether a study is whole: a process that died while making it, or a lost file, leaves a part."""
    return all((folder / name).is_file() for name in ("study.json", "optuna.db"))


def names(folder: Path) -> list[str]:
    """Names of the studies below a folder, the oldest first."""
    found = [path.parent for path in folder.glob("*/study.json")]
    return [path.name for path in sorted(found, key=lambda path: (path / "study.json").stat().st_mtime)]


def _make_storage(folder: Path, plan: Plan, first: Mapping[str, float | int | str]) -> None:
    """Make Optuna's file aside, and rename it when it is whole."""
    new = folder / "new.db"
    for left in folder.glob("new.db*"):
        left.unlink()
    storage = _storage(new)
    study = optuna.create_study(study_name=folder.name, storage=storage, direction="maximize")
    study.set_metric_names([f"accuracy on held-out {plan.held_out:g}"])
    study.enqueue_trial(dict(first))
    storage.remove_session()
    storage.engine.dispose()
    new.rename(folder / "optuna.db")


def _storage(database: Path) -> optuna.storages.RDBStorage:
    url = URL.create("sqlite", database=str(database)).render_as_string()
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}})


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if plan.pruner == "none":
        return optuna.pruners.NopPruner()
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5)
    if plan.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=LOOKS, reduction_factor=2)
    raise InputError(f"unknown pruner {plan.pruner!r}", "choose median, hyperband or none")


LOOKS = 4
"""A condensation is looked at after each quarter but the last, whose score is the trial's."""


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.choices)
    if dimension.kind == "int":
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _suggest(trial: optuna.Trial, name: str, dimension: Dimension) -> float | int | str:
    if dimension.kind == "choice":
        return trial.suggest_categorical(name, dimension.choices)
    if dimension.kind == "int":
        return trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The study to oneself, for a moment."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces what it does, and warns of what is new in it; neither is for the user of a study."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
