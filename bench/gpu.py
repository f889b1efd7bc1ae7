"""All measurements that want a CUDA GPU, unattended and within a budget of time.

python -m bench.gpu --budget 25m [--data FOLDER] [--output results] [--home FOLDER] [--size cuda|cpu|rehearsal]

In this order: the bench; experts; one image per class by every method; the ablation of ESP's residual on held-out
training images, and the variant that won there on the whole training set; 10 and 50 images per class. What is finished
is kept under `--output` after every cell, and a second call with the same `--home` and `--output` goes on where the
first one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import variants
from bench.__main__ import PARTS
from bench.campaign import PLANS, Options, Plan
from esp.errors import EspError
from espctl.services.reproduction.plan import parse_budget

SHORT = 3_600.0
"""Budgets below this many seconds have fewer steps."""
GRACE = 30.0
"""Seconds that a command has to save itself when time is up."""
_RESUME = re.compile(r"condense --resume (\S+)")


class TimeUpError(Exception):
    """The budget is spent."""


@dataclass
class Campaign:
    """The measurements under way."""

    plan: Plan
    home: Path
    output: Path
    budget: float
    begun: float
    _said: str = ""

    @property
    def left(self) -> float:
        """Seconds of the budget that are left, less what saving takes."""
        return self.begun + self.budget - time.monotonic() - GRACE

    @property
    def lines(self) -> Path:
        """Where the ablation is kept."""
        return self.output / f"{self.plan.name}-variants.jsonl"

    def carry_out(self) -> None:
        """Everything, in order; a command that fails is told of, and the next one begins.

        Raises:
            TimeUpError: there was not enough time.
        """
        plan = self.plan
        self.take_in()
        self.bench()
        store = self.experts(plan.expert_seconds)
        self.accuracies(plan.budgets[0], store)
        if held_out := self.experts(plan.expert_seconds / 2, "--held-out", str(variants.HELD_OUT)):
            self.ablation(held_out)
            if best := variants.best_of(variants.read(self.lines)):
                self.cell("esp", plan.budgets[0], store, best)
        for ipc in plan.budgets[1:]:
            self.accuracies(ipc, store)

    def take_in(self) -> None:
        """Runs of an earlier call, where another machine goes on with what that one left under `output`."""
        if self._bundle.exists() and not (self.home / "runs").exists():
            self.command(["runs", "import", str(self._bundle)])

    @property
    def _bundle(self) -> Path:
        return self.output / f"{self.plan.name}-runs.tar.gz"

    def bench(self) -> None:
        """The bench, part by part; what its share of the budget does not suffice for is left out."""
        end = time.monotonic() + self.plan.bench_share * self.budget
        done = self.output / f"{self.plan.name}-bench.done"
        for part in self.plan.bench or PARTS:
            known = done.read_text(encoding="utf-8").split() if done.exists() else []
            seconds = min(self.left, end - time.monotonic())
            if part in known or seconds < GRACE:
                continue
            words = ["-m", "bench", part, "--size", self.plan.name, "--output", str(self.output)]
            if self._run(words, seconds) is not None:
                done.write_text(" ".join([*known, part]), encoding="utf-8")

    def experts(self, seconds: float, *flags: str) -> str:
        """As many experts as fit into some seconds, each wave twice the one before; the name of their store."""
        plan, end = self.plan, time.monotonic() + min(seconds, 0.4 * self.left)
        base = ["experts", "build", "-d", plan.dataset, "-n", plan.network, "--epochs", str(plan.epochs), *flags]
        count, store = plan.first, ""
        while True:
            begun = time.monotonic()
            found = self.command([*base, "--count", str(count)])
            if found is None:
                return store
            store, took = found["store"], time.monotonic() - begun
            if count >= plan.most or time.monotonic() + 1.2 * took > end:
                return store
            count = min(2 * count, plan.most)

    def accuracies(self, ipc: int, store: str) -> None:
        """A row of the accuracy table by every method."""
        for method in self.plan.methods:
            self.cell(method, ipc, store)

    def cell(self, method: str, ipc: int, store: str, changed: Options | None = None) -> None:
        """Condense, score under every protocol, and write what is there now."""
        plan = self.plan
        short = plan.short.get(method, {}) if self.budget < SHORT else {}
        options = {**plan.options.get(method, {}), **short, **(changed or {})}
        words = ["condense", "-d", plan.dataset, "--ipc", str(ipc), "-m", method, "-n", plan.network]
        if method == "esp":
            if not store:
                return
            segment = int(options.setdefault("segment", min(10, plan.epochs // 2)))
            options.setdefault("start_max", plan.start_max(segment))
            words += ["--experts", store]
        for name, value in options.items():
            words += ["--set", f"{name}={value}"]
        run = self.command(words)
        if run is None:
            return
        for protocol in plan.protocols:
            scoring = ["evaluate", run["id"], "-p", protocol, "-n", plan.network, "--no-baseline", *plan.scoring]
            self.command([*scoring, "--seeds", str(plan.seeds)])
        self.keep()

    def ablation(self, store: str) -> None:
        """Variants of ESP on held-out training images."""
        words = ["-m", "bench.variants", "--size", self.plan.name, "--home", str(self.home), "--store", store]
        seconds = min(self.left, max(60.0, 0.6 * self.left))
        self._run([*words, "--output", str(self.lines), "--seconds", str(seconds)], seconds + GRACE)
        if lines := variants.read(self.lines):
            text = variants.table(lines)
            (self.output / f"{self.plan.name}-variants.md").write_text(text, encoding="utf-8")

    def keep(self) -> None:
        """Write the accuracies so far, and the runs with their sets as one bundle."""
        for option, path in (
            ("--results", self.output / f"{self.plan.name}-accuracies.json"), ("--output", self._bundle),
        ):  # fmt: skip
            fresh = path.with_name(f"new-{path.name}")
            fresh.unlink(missing_ok=True)
            if self.command(["runs", "export", "--all", option, str(fresh)], saving=True) is not None:
                fresh.replace(path)

    def command(self, words: list[str], saving: bool = False) -> Any:
        """What a command of the program prints as JSON; None when it failed. An unfinished run is gone on with."""
        common = ["--json", "--home", str(self.home)]
        if words[0] in ("condense", "evaluate", "experts"):
            common += ["--device", self.plan.device, "--quiet"]
        seconds = max(GRACE, self.left) if saving else self.left
        done = self._run(["-m", "espctl", *words, *common], seconds)
        unfinished = _RESUME.search(self._said) if done is None and words[0] == "condense" else None
        if unfinished and "--resume" not in words:
            return self.command(["condense", "--resume", unfinished[1]])
        try:
            return None if done is None else json.loads(done)
        except ValueError:
            return None

    def _run(self, words: list[str], seconds: float) -> str | None:
        """Standard output of Python with some words; None when it failed. It is interrupted when time is up.

        Raises:
            TimeUpError: it was interrupted by the end of the budget.
        """
        if seconds <= 0:
            raise TimeUpError
        begun = time.monotonic()
        child = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, self._said = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            try:
                out, self._said = child.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                out, self._said = child.communicate()
        took = time.monotonic() - begun
        entry = {"words": words, "seconds": round(took, 2), "code": child.returncode}
        entry |= {"out": out[-4000:], "error": self._said[-2000:] if child.returncode else ""}
        with (self.output / f"{self.plan.name}-log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{took:8.1f} s  {'ok    ' if not child.returncode else 'failed'}  {' '.join(words[1:])}", flush=True)
        if child.returncode:
            print(self._said[-500:], file=sys.stderr, flush=True)
            if self.left <= 0:
                raise TimeUpError
            return None
        return out


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="25m", help="90s, 25m, 2h: all of it, with an end in good order")
    parser.add_argument("--data", type=Path, help="folder of the CIFAR-10 packs, or of a converted cifar10.safetensors")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--home", type=Path, default=Path("build/gpu"), help="where data, experts and runs are")
    parser.add_argument("--size", choices=PLANS, default="cuda")
    chosen = parser.parse_args()
    try:
        budget = parse_budget(chosen.budget)
    except EspError as error:
        parser.error(f"{error.message}: {error.hint}")
    if chosen.data and not chosen.data.is_dir():
        parser.error(f"{chosen.data} is no folder")
    chosen.output.mkdir(parents=True, exist_ok=True)
    _put(chosen.data, chosen.home / "data")
    campaign = Campaign(PLANS[chosen.size], chosen.home, chosen.output, budget, time.monotonic())
    try:
        campaign.carry_out()
    except TimeUpError:
        print("time is up: the same command goes on from here", flush=True)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", flush=True)
        sys.exit(130)


def _put(source: Path | None, target: Path) -> None:
    """The packs where the program looks for them: a converted set is copied, raw files are only pointed to."""
    target.mkdir(parents=True, exist_ok=True)
    if source is None:
        return
    os.environ["ESPCTL_PATHS_RAW"] = str(source.absolute())
    for path in source.glob("*.safetensors"):
        if not (target / path.name).exists():
            shutil.copy(path, target / path.name)


if __name__ == "__main__":
    main()
