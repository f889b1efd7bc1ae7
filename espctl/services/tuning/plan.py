"""What a study asks: everything that two processes that work on it must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from espctl.services.tuning.space import from_json


@dataclass(frozen=True)
class Plan:
    """What a study asks; two processes that work on it must agree.

    Attributes:
        dataset, fingerprint, ipc, method, preset, network, parametrisation, seed, experts, expert_count: as for a run.
        options: text values that every trial has.
        steps: to which every condensation is cut; 0 leaves the method's own.
        held_out: fraction of the training images that scores the trials and is kept away from them.
        protocol, epochs, seeds: how a trial is scored; `protocol_hash` names the content of the whole protocol.
        pruner: `median`, `hyperband` or `none`.
        space: option -> `Dimension.describe`.
    """

    dataset: str
    fingerprint: str
    ipc: int
    method: str
    preset: str
    network: str
    parametrisation: str
    seed: int
    experts: str
    expert_count: int
    options: Mapping[str, str]
    steps: int
    held_out: float
    protocol: str
    protocol_hash: str
    epochs: int
    seeds: int
    pruner: str
    space: Mapping[str, Mapping[str, Any]]

    @property
    def fixed(self) -> dict[str, str]:
        """The options that every trial has."""
        return {**self.options, **({"steps": str(self.steps)} if self.steps else {})}


_CONTENT = {"fingerprint": "dataset", "protocol_hash": "protocol"}


def differences(there: Plan, asked: Plan) -> list[str]:
    """The settings in which two plans differ, as `ipc is 1, not 10`."""
    old, new = asdict(there), asdict(asked)
    found = []
    for name in old:
        if old[name] == new[name]:
            continue
        if name in _CONTENT:
            if old[_CONTENT[name]] == new[_CONTENT[name]]:
                found.append(f"the content of {_CONTENT[name]} {old[_CONTENT[name]]!r} has changed")
            continue
        if name == "space":
            entries = [{key: str(value) for key, value in from_json(plan[name]).items()} for plan in (old, new)]
        elif name == "options":
            entries = [old[name], new[name]]
        else:
            found.append(f"{name} is {old[name]!r}, not {new[name]!r}")
            continue
        keys = sorted(key for key in {*entries[0], *entries[1]} if entries[0].get(key) != entries[1].get(key))
        found += [f"{key} is {entries[0].get(key, 'not there')}, not {entries[1].get(key, 'away')}" for key in keys]
    return found
