"""Properties of every parser: whatever it is given, it refuses in one sentence or understands (targets of `fuzz`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def _targets() -> ModuleType:
    path = Path(__file__).parents[2] / "fuzz" / "targets.py"
    spec = importlib.util.spec_from_file_location("fuzz_targets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = _targets()
PIECES = [b"", b"\0", b"\xff", b"[", b"{", b'"', b"9" * 30, b"-1", b"1e999", b"NaN", b"\x1b[31m", b"..", b"\n", b"null"]


@pytest.mark.parametrize("name", sorted(fuzz.TARGETS))
@settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(choice=st.data())
def test_a_parser_refuses_or_understands(name: str, choice: st.DataObject) -> None:
    data = choice.draw(st.sampled_from(list(fuzz.seeds(name))))
    for _ in range(choice.draw(st.integers(0, 4))):
        start = choice.draw(st.integers(0, len(data)))
        stop = choice.draw(st.integers(start, min(len(data), start + 12)))
        piece = choice.draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)))
        data = data[:start] + piece + data[stop:]
    fuzz.check(fuzz.TARGETS[name], data)
