from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import esp
from esp.vision import torchvision


def test_torchvision_is_imported_once_and_works() -> None:
    found = torchvision()
    assert found is torchvision()
    assert found.datasets.CIFAR10.base_folder == "cifar-10-batches-py"
    assert found.models.resnet18(weights=None).fc.out_features == 1000


def test_a_process_that_imports_it_first_needs_nothing_else() -> None:
    code = "from esp.vision import torchvision; torchvision().transforms.Normalize((0.5,), (0.5,))"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_torchvision_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise ImportError('no such thing')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import esp.vision; esp.vision.torchvision()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DataError: torchvision cannot be imported (no such thing)" in result.stderr


def test_no_other_file_imports_torchvision() -> None:
    files = [path for folder in esp.__path__ for path in Path(folder).rglob("*.py")]
    importing = re.compile(r"^\s*(import|from) torchvision\b", re.MULTILINE)
    assert len(files) > 10
    assert [path.name for path in files if importing.search(path.read_text(encoding="utf-8"))] == []
