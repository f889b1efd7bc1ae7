"""What holds over thread counts: the same number gives the same bytes, another one the same up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from esp import artifact

WORDS = (
    "condense -d digits --ipc 1 -n convnet3,width=8 --preset quick --set real_batch=32 --set steps=3 --compile off "
    "--again --json"
)


@pytest.fixture
def made(project: Any) -> Any:
    def make(method: str, threads: int) -> Path:
        run = project(f"{WORDS} -m {method} --threads {threads}").json["id"]
        folder: Path = project.home / "runs" / run
        return folder / "synthetic.safetensors"

    return make


@pytest.mark.parametrize("method", ["dm", "dsa"])
def test_the_same_number_of_threads_gives_the_same_bytes_and_another_one_the_same_images(
    made: Any, method: str
) -> None:
    before = torch.get_num_threads()
    one, again, two, twice = (made(method, threads) for threads in (1, 1, 2, 2))
    torch.set_num_threads(before)
    assert artifact.content_digest(one) == artifact.content_digest(again)
    assert artifact.content_digest(two) == artifact.content_digest(twice)
    ours, theirs = (artifact.load(path).tensors for path in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-3)
