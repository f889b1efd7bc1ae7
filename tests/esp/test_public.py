from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import esp
import espctl

ROOT = Path(esp.__file__).parents[1]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_public_name_resolves_to_something_documented() -> None:
    for name in esp.__all__:
        found = getattr(esp, name)
        assert name == "__version__" or found.__doc__, name
    assert dir(esp) == sorted(esp.__all__)


def test_library_and_driver_have_one_version() -> None:
    assert esp.__version__ == espctl.__version__


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'esp' has no attribute 'nothing'"):
        _ = esp.nothing


@pytest.mark.parametrize(
    "module",
    ["esp", "esp.errors", "esp.files", "esp.registry", "esp.methods", "esp.networks", "esp.protocols", "esp.data"],
)
def test_names_and_tables_do_not_import_torch(module: str) -> None:
    code = (
        f"import sys, {module}; print(sorted({{'torch', 'numpy', 'torchvision', 'safetensors'}} & sys.modules.keys()))"
    )
    assert python(code) == "[]"


def test_a_public_name_imports_torch_when_it_is_used() -> None:
    assert python("import sys, esp; esp.condense; print('torch' in sys.modules)") == "True"


def test_the_library_never_prints_nor_reads_the_environment() -> None:
    for file in sorted((ROOT / "esp").rglob("*.py")):
        assert not re.search(r"\bprint\(|\benviron\b|\bgetenv\b", file.read_text()), file
