"""Metrics of a run for other programs, while it goes on: TensorBoard, MLflow or Weights & Biases. Off by default.

The run's own `metrics.jsonl` is written in any case and is the truth; what is written here is a copy. A program that
fails to take it never ends a run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any, Protocol

from espctl.errors import SettingsError
from espctl.settings import Logging

Progress = Callable[[int, dict[str, float | str]], None]


class Log(Protocol):
    """Takes the metrics of one run."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Values after `step` steps."""

    def close(self, finished: bool) -> None:
        """Nothing more comes; `finished` tells a run that reached its end."""


def require(chosen: Logging) -> None:
    """Check that the package behind a choice is there.

    Raises:
        SettingsError: it is not installed.
    """
    if chosen.to != "none" and importlib.util.find_spec(chosen.to) is None:
        raise SettingsError(
            f"logging to {chosen.to} needs a package that is not installed",
            f"run: pip install 'esp-condense[{chosen.to}]'; or leave out --log",
        )


@contextmanager
def following(
    chosen: Logging, folder: Path, run: str, facts: Mapping[str, Any], on_progress: Progress
) -> Iterator[Progress]:
    """A progress function that also logs, for the time of one run.

    Args:
        chosen: where to; `none` gives back `on_progress` itself.
        folder: where local files go.
        run: the run's id, its name there as well. A resumed run goes on under it.
        facts: what the run was asked for, flat or nested.
        on_progress: gets everything, as if nothing were logged; and `log`, why the logging stopped, if it did.

    Raises:
        SettingsError: the package is not installed.
    """
    if chosen.to == "none":
        yield on_progress
        return
    require(chosen)
    copy = _Copy(lambda: _OPENERS[chosen.to](chosen.project, folder, run, flat(facts)), on_progress)
    finished = False
    try:
        yield copy
        finished = True
    finally:
        copy.close(finished)


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names; lists become text."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, str | int | float)
            found[f"{prefix}{name}"] = value if plain else str(value)
    return found


class _Copy:
    """Hands metrics on, and to a log, opened at once: how slowly that starts must not count as time of the run."""

    def __init__(self, opener: Callable[[], Log], on_progress: Progress) -> None:
        self._progress, self._problem = on_progress, ""
        self._log: Log | None = None
        self._try(lambda: self._keep(opener()))

    def __call__(self, done: int, values: dict[str, float | str]) -> None:
        numbers = {name: value for name, value in values.items() if isinstance(value, float)}
        self._try(lambda: self._log.add(done, numbers) if self._log else None)
        self._progress(done, {**values, "log": f"stopped: {self._problem}"} if self._problem else values)

    def close(self, finished: bool) -> None:
        self._try(lambda: self._log.close(finished) if self._log else None)

    def _keep(self, log: Log) -> None:
        self._log = log

    def _try(self, action: Callable[[], None]) -> None:
        if not self._problem:
            try:
                action()
            except Exception as error:  # whatever another program does, the run goes on
                self._problem = f"{type(error).__name__}: {error}".splitlines()[0]


class _TensorBoard:
    """Event files under FOLDER/tensorboard/RUN."""

    def __init__(self, _project: str, folder: Path, run: str, facts: Mapping[str, Any]) -> None:
        self._folder, self._facts = folder / "tensorboard" / run, facts
        self._writer: Any = None
        from torch.utils.tensorboard import SummaryWriter

        self._make = SummaryWriter

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            # What an earlier part of the run wrote at this step or after is not shown any more.
            self._writer = self._make(str(self._folder), purge_step=step)
            table = "\n".join(
                ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in self._facts.items())]
            )
            self._writer.add_text("request", table, step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, finished: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class _MLflow:
    """A run on the server that MLFLOW_TRACKING_URI names, or in FOLDER/mlflow.db."""

    def __init__(self, project: str, folder: Path, run: str, facts: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine that nobody asked for
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        folder.mkdir(parents=True, exist_ok=True)
        self._metric = Metric
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}")
        known = self._client.get_experiment_by_name(project)
        where = folder / "mlflow"
        experiment = known.experiment_id if known else self._client.create_experiment(project, where.as_uri())
        earlier = self._client.search_runs([experiment], f"tags.`espctl.run` = '{run}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.set_terminated(self._id, "RUNNING")
            return
        self._id = self._client.create_run(experiment, run_name=run, tags={"espctl.run": run}).info.run_id
        self._client.log_batch(self._id, params=[Param(name, str(value)[:6000]) for name, value in facts.items()][:100])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time() * 1000)
        self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in values.items()])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class _WandB:
    """A run of Weights & Biases: in FOLDER/wandb and nowhere else, unless WANDB_MODE says otherwise."""

    def __init__(self, project: str, folder: Path, run: str, facts: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project,
            id=run,
            name=run,
            resume="allow",
            dir=str(folder),
            config=dict(facts),
            mode=os.environ.get("WANDB_MODE") or "offline",
            settings=wandb.Settings(console="off", silent=True),
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


_OPENERS: dict[str, Callable[[str, Path, str, Mapping[str, Any]], Log]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}
