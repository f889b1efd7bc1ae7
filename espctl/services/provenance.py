"""Where a result comes from: versions, machine, and the state of the source tree."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import safetensors
import torch

import espctl
from esp.files import sha256


@dataclass(frozen=True)
class Provenance:
    """Versions and source state as JSON, and the uncommitted patch as text (empty when there is none)."""

    facts: dict[str, Any]
    patch: str


def collect() -> Provenance:
    """Describe this program and machine as they are now."""
    commit, patch = _git_state(Path(espctl.__file__).resolve().parent.parent)
    facts = {
        "version": espctl.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "safetensors": safetensors.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": commit,
        "git_patch_sha256": sha256(patch) if patch else None,
    }
    return Provenance(facts, patch)


def _git_state(source: Path) -> tuple[str | None, str]:
    """Commit and uncommitted patch of the checkout that the program runs from; (None, "") when it is installed."""
    if not (source / ".git").exists():
        return None, ""
    commit = _git(source, "rev-parse", "HEAD")
    return commit.strip() or None, _git(source, "diff", "HEAD") if commit else ""


def _git(source: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
