"""Run folders, experts and bundles of every released format, and what is said of later ones."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from esp import artifact, condensed
from esp.errors import ArtifactError
from esp.files import canonical, file_sha256, sha256
from espctl.errors import SchemaError
from espctl.store import folder as folders

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("project-*"))
ESP, DM, COMPRESSED = "esp-digits-1-b08e9a86", "dm-digits-1-49f1b6b4", "8bit-esp-digits-1-48f82e39"


@pytest.fixture(params=GOLDEN, ids=[path.name for path in GOLDEN])
def golden(request: pytest.FixtureRequest, tmp_path: Path, finished: Any) -> Any:
    """A golden project, with the data set that all of them are of."""
    home = Path(shutil.copytree(request.param, tmp_path / "golden"))
    shutil.copytree(finished.home / "data", home / "data")
    return type(finished)(home)


def test_there_is_one_since_folders_are_kept() -> None:
    assert [path.name for path in GOLDEN][:1] == ["project-0003"]
    assert all(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 100_000 for path in GOLDEN)


def test_every_file_is_read_and_has_its_recorded_digest(golden: Any) -> None:
    recorded = json.loads((golden.home / "digests.json").read_text())
    for name, digest in recorded["files"].items():
        assert file_sha256(golden.home / name) == digest, name
    for name, digest in recorded["digests"].items():
        assert artifact.load(golden.home / name).digest == digest, name
    for name, digest in recorded["images"].items():
        assert artifact.tensor_digest(condensed.load(golden.home / name).images()) == digest, name


def test_it_is_listed_verified_evaluated_and_resumed(golden: Any) -> None:
    found = {run["id"]: run for run in golden("runs ls --json").json}
    assert {run: one["state"] for run, one in found.items()} == {
        ESP: "finished", DM: "interrupted", COMPRESSED: "finished"
    }  # fmt: skip
    shown = golden("runs show golden --json").json
    assert (found[ESP]["note"], found[ESP]["tags"], len(shown["detail"]["evaluations"])) == (
        "kept for ever", ["first", "second"], 1
    )  # fmt: skip
    assert all(not one["problems"] for one in golden("verify --all --json").json)
    assert golden("experts verify").out.endswith("1 expert, 0 damaged\n")
    before = {path: file_sha256(path) for path in golden.home.glob("runs/*/evaluations/*")}
    golden(f"evaluate {ESP} --epochs 1 --no-baseline")
    assert {path: file_sha256(path) for path in before} == before, "the score is there already"
    golden(f"evaluate {COMPRESSED} --epochs 1 --no-baseline")
    done = golden(f"condense --resume {DM} --json")
    assert (done.json["state"], done.json["id"]) == ("finished", DM)
    steps = [json.loads(line)["step"] for line in (golden.home / f"runs/{DM}/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4], "it went on after its second step"
    golden("condense -d digits --ipc 1 -m esp --set steps=2 --set real_batch=4 --set segment=2 --set start_max=0")


def test_its_bundle_is_taken_in(golden: Any, project: Any) -> None:
    found = project(f"runs import {golden.home}/bundle.tar.gz --json").json
    assert found["added"] == [ESP]
    assert [Path(name).suffix for name in found["experts"]] == [".json", ".safetensors"]
    assert project("verify golden --json").json[0]["problems"] == []


def test_a_folder_of_a_newer_format_is_refused_with_the_version_that_reads_it(golden: Any) -> None:
    path = golden.home / f"runs/{ESP}/request.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "format": 2, "provenance": {"version": "9.1"}}))
    with pytest.raises(SchemaError, match="has format 2, this program reads 1") as caught:
        folders.read(path.parent, golden.home)
    assert "9.1" in caught.value.hint
    assert [name for name, _ in golden("runs sync --json").json["unreadable"]] == [ESP]
    assert "has format 2" in golden("db rebuild").err


def test_a_file_of_a_newer_format_is_refused_with_the_version_that_reads_it(golden: Any) -> None:
    path = golden.home / f"runs/{ESP}/synthetic.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    body = {**json.loads(header["__metadata__"]["esp"]), "format": 2, "program": "9.1"}
    body.pop("digest")
    header["__metadata__"]["esp"] = canonical({**body, "digest": sha256(canonical(body))})
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    with pytest.raises(ArtifactError, match="has format 2, this program reads 1") as caught:
        artifact.load(path)
    assert "9.1" in caught.value.hint


def test_a_bundle_of_a_newer_format_is_refused_with_the_version_that_reads_it(golden: Any, tmp_path: Path) -> None:
    with tarfile.open(golden.home / "bundle.tar.gz") as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4
        tar.extractall(tmp_path / "bundle")
    path = tmp_path / "bundle/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": "0999", "program": "9.1"}))
    done = golden(f"runs import {tmp_path}/bundle", code=1)
    assert "schema '0999'" in done.err
    assert "use espctl 9.1" in done.err


def test_a_newer_database_is_refused_with_the_copy_from_before(golden: Any) -> None:
    golden("runs sync")
    golden("db backup")
    [copy] = golden.home.glob("espctl.db.backup-*")
    with closing(sqlite3.connect(golden.home / "espctl.db")) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '0999'")
        raw.execute("UPDATE runs SET version = '9.1'")
        raw.commit()
    for words in ("runs ls", "db upgrade", "db rebuild", f"runs tag {ESP} x"):
        done = golden(words, code=1)
        assert "schema 0999, which is newer than this program" in done.err
        assert copy.name in done.err
        assert "9.1" in done.err
