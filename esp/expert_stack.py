"""Training several experts at once (`esp.stacked`), into the files that `esp.experts.build` writes one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from esp import artifact
from esp.data.dataset import Dataset
from esp.errors import DivergedError
from esp.experts import CHUNK, Log, Plan, judges, key_of, places, require_same, require_space
from esp.stacked import Stack, Together, accuracies, halved
from esp.training import Trainer

Told = Callable[[int, int, float, float], None]

_SHARE = 10
"""Saving may take a part in so many of the time."""


def build_stack(
    plan: Plan,
    numbers: Sequence[int],
    data: Dataset,
    folder: Path,
    device: torch.device,
    compile: bool = False,  # noqa: A002
    save_every: float = 60.0,
    on_epoch: Told | None = None,
) -> list[Path]:
    """Train experts at once, each into the file that `esp.experts.build` writes; go on where earlier calls stopped.

    An expert may have been begun alone or in another stack: those that are behind catch up first. Where all of them do
    not fit into memory, they are trained in halves. A file is equal to that of an expert trained alone as `esp.stacked`
    says; its plan and its name are the same.

    Args:
        plan, data, folder, device, compile: as of `build`.
        numbers: the experts.
        save_every: seconds between saves of unfinished experts, longer where saving would take a tenth of the time.
        on_epoch: called with (number, epochs done, loss, test accuracy).

    Returns:
        The files' paths, in the order of `numbers`.

    Raises:
        InputError: the network cannot be stacked.
        DivergedError: the training of one of them diverged; the others are finished first.
    """
    crew = _Crew(plan, data, folder, device, compile, save_every, on_epoch)
    try:
        crew.enter(numbers)
        crew.train()
    except KeyboardInterrupt:
        crew.save()
        raise
    for error in crew.failed.values():
        raise error
    return [places(folder, number)[0] for number in numbers]


class _Crew:
    """Experts that are trained together: a log for each that is not finished, an error for each that diverged."""

    def __init__(
        self,
        plan: Plan,
        data: Dataset,
        folder: Path,
        device: torch.device,
        compile: bool,  # noqa: A002
        save_every: float,
        on_epoch: Told | None,
    ) -> None:
        require_space(plan, data)
        self.plan, self.data, self.folder, self.device = plan, data, folder, device
        self.save_every, self.on_epoch = save_every, on_epoch
        self.stack = Stack(Trainer(plan.network, plan.recipe, data.flips, device, compile))
        self.images, self.labels = data.train_images.to(device), data.train_labels.to(device)
        self.tests = data.test_images.to(device), data.test_labels.to(device)
        self.logs: dict[int, Log] = {}
        self.failed: dict[int, DivergedError] = {}
        self.save_at = time.monotonic() + save_every

    def enter(self, numbers: Sequence[int]) -> None:
        """Take up the experts that are not finished, where they are."""
        for number in numbers:
            path, unfinished = places(self.folder, number)
            if path.exists():
                require_same(path, artifact.read_meta(path)[0], self.plan, self.data)
            elif found := Log.resume(unfinished, self.plan, self.data):
                self.logs[number] = found
            else:
                start = self.stack.trainer.start(key_of(self.plan, number))
                self.logs[number] = Log.begin(start, self.plan, self.data)

    def train(self) -> None:
        """Bring those that are most behind to where the next ones are, until all are finished."""
        for number in [number for number in self._open() if self.logs[number].epoch == self.plan.recipe.epochs]:
            self._finish(number)  # an earlier call was stopped just before
        while self._open():
            epochs = sorted({self.logs[number].epoch for number in self._open()})
            until = epochs[1] if len(epochs) > 1 else self.plan.recipe.epochs
            behind = [number for number in self._open() if self.logs[number].epoch == epochs[0]]
            halved(partial(self._advance, until), behind)

    def _open(self) -> list[int]:
        return [number for number in self.logs if number not in self.failed]

    def _advance(self, until: int, numbers: Sequence[int]) -> list[int]:
        """Train experts that have done the same epochs to the end of epoch `until`. What is done stays done."""
        if not (numbers := [number for number in numbers if number in self._open()]):
            return []
        starts = [self.logs[number].last(self.device) for number in numbers]
        keys = [key_of(self.plan, number) for number in numbers]
        for together in self.stack.epochs(starts, self.images, self.labels, self.data.normalise, keys):
            self._add(numbers, together)
            if together.epoch == until or not set(numbers) & set(self._open()):
                break
            if time.monotonic() >= self.save_at:
                self.save()
        return list(numbers)

    def _add(self, numbers: Sequence[int], together: Together) -> None:
        """Test all members on the images that judge the epoch, and enter them; finish those that are at the end."""
        rows = judges(self.plan, together.epoch, self.data).to(self.device)
        images, labels = (tensor[rows] for tensor in self.tests)
        scores = accuracies(
            self.plan.network, together.theta, together.statistics, images, labels, self.data.normalise, CHUNK
        )
        found, weights = together.snapshots(), together.theta.cpu()
        for number, snapshot, theta, score in zip(numbers, found, weights, scores, strict=True):
            if number not in self._open():
                continue
            if isinstance(snapshot, DivergedError):
                self.failed[number] = snapshot
                continue
            log = self.logs[number]
            log.add(replace(snapshot, theta=theta), score)
            if self.on_epoch:
                self.on_epoch(number, log.epoch, log.curve[-1]["loss"], score)
            if log.epoch == self.plan.recipe.epochs:
                self._finish(number)

    def _finish(self, number: int) -> None:
        path, unfinished = places(self.folder, number)
        self.logs[number].finish(path, self.plan, number, self.data)
        unfinished.unlink(missing_ok=True)
        del self.logs[number]

    def save(self) -> None:
        """Write what there is of the unfinished experts."""
        begun = time.monotonic()
        for number in self._open():
            path, unfinished = places(self.folder, number)
            if not path.exists():  # an interrupt may come just after an expert was finished
                self.logs[number].save(unfinished, self.plan, self.data)
        now = time.monotonic()
        self.save_at = now + max(self.save_every, _SHARE * (now - begun))
