"""Bundles: written alike, imported whole, and refused whole."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from esp.errors import ArtifactError, EspError
from espctl.errors import RunError, SchemaError
from espctl.services import bundles
from espctl.services.project import Project
from espctl.services.reporting import report
from espctl.store import bundle


@pytest.fixture
def here(generated: Any) -> Project:
    return Project.open({"home": generated.home})


@pytest.fixture
def there(tmp_path: Path) -> Project:
    (tmp_path / "there").mkdir()
    return Project.open({"home": tmp_path / "there"})


@pytest.fixture
def folder(here: Project, tmp_path: Path) -> Path:
    """A bundle as a folder."""
    bundles.export(here, (), "", tmp_path / "bundle")
    return tmp_path / "bundle"


def untouched(project: Project) -> bool:
    """Whether a project holds no run and nothing that an import left."""
    left = list(project.paths.runs.iterdir()) if project.paths.runs.exists() else []
    return not left and project.store.database.exists() and not report_rows(project)


def report_rows(project: Project) -> list[object]:
    try:
        return list(report.rows(project, report.Query()))
    except EspError:
        return []


def names(project: Project) -> list[str]:
    return sorted(path.name for path in project.paths.runs.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", ["b", "b.tar", "b.tar.gz", "b.tgz"])
def test_a_bundle_gives_the_same_tables_elsewhere(here: Project, there: Project, tmp_path: Path, name: str) -> None:
    made = bundles.export(here, (), "", tmp_path / name)
    assert (len(made.runs), made.left_out) == (5, ())
    done = bundles.take_in(there, made.path)
    assert done.added == made.runs
    assert names(there) == names(here)
    assert report_rows(there) == report_rows(here) != []
    assert bundles.take_in(there, made.path).known == made.runs
    assert (tmp_path / name).is_dir() == (name == "b")


def test_the_same_runs_make_the_same_bytes(here: Project, tmp_path: Path) -> None:
    for number in (1, 2):
        bundles.export(here, (), "method=esp", tmp_path / f"{number}.tar.gz")
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()


def test_what_is_exported(here: Project, tmp_path: Path) -> None:
    run, other = sorted(here.paths.runs.glob("esp-*"))[:2]
    for name in ("lock", "checkpoint.safetensors", ".x.tmp", "evaluations/.y.tmp"):
        (run / name).write_text("")
    made = bundles.export(here, [run.name[:18]], "", tmp_path / "b")
    listed = {entry["path"] for entry in json.loads((tmp_path / "b/manifest.json").read_text())["files"]}
    parts = ("request.json", "outcome.json", "metrics.jsonl", "synthetic.safetensors")
    assert listed == {f"runs/{run.name}/{p}" for p in (*parts, "evaluations/dsa.s0.json", "evaluations/dsa.s1.json")}
    assert made.files == 6
    (other / "outcome.json").unlink()
    assert bundles.export(here, (), "", tmp_path / "c").left_out == (other.name,)
    with pytest.raises(RunError, match="has not ended"):
        bundles.export(here, [other.name], "", tmp_path / "d")
    with pytest.raises(EspError, match="exists already"):
        bundles.export(here, (), "", tmp_path / "b")
    (run / "link").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match="is no file"):
        bundles.export(here, [run.name], "", tmp_path / "e")


@pytest.mark.parametrize("at", range(0, 1200, 97))
def test_any_byte_that_changes_is_found(folder: Path, there: Project, at: int) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    path = paths[at % len(paths)]
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum of"):
        bundles.take_in(there, folder)
    assert untouched(there)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def other_file(folder: Path, path: str) -> None:
    """List one more file in the manifest, under any path."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit(folder, files=[*files, {"path": path, "sha256": "0" * 64, "bytes": 0}])


@pytest.mark.parametrize(
    "path",
    [
        "../evil", "runs/../../evil", "/etc/evil", "runs/a/../../../b/c", "runs/a\\b/c", "runs/.trash/c", "runs/x/",
        "runs//x", "runs/a/b\n", "data/x", "experts/a/other.json", "runs/a", "C:/x/y", "runs/a/./b", "",
    ],
)  # fmt: skip
def test_a_path_outside_is_refused(folder: Path, there: Project, path: str) -> None:
    other_file(folder, path)
    with pytest.raises(ArtifactError, match="cannot hold"):
        bundles.take_in(there, folder)
    assert untouched(there)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"schema": "9999"}, SchemaError, "schema '9999'"),
        ({"version": 2}, SchemaError, "version 2"),
        ({"format": "zip"}, ArtifactError, "no bundle"),
        ({"runs": []}, ArtifactError, "contradicts"),
        ({"files": "many"}, ArtifactError, "lacks a key"),
        ({"files": [{"path": "runs/a/b", "sha256": "0", "bytes": -1}]}, ArtifactError, "lacks a key"),
        ({"files": [{"path": "runs/a/b", "sha256": "0", "bytes": 2**60}], "runs": ["a"]}, ArtifactError, "more than"),
    ],
)
def test_a_bad_manifest_is_refused(
    folder: Path, there: Project, changes: dict[str, object], error: type[EspError], reason: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(error, match=reason):
        bundles.take_in(there, folder)
    assert untouched(there)


def test_what_is_missing_or_too_much_is_refused(folder: Path, there: Project) -> None:
    path = next(folder.rglob("metrics.jsonl"))
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        bundles.take_in(there, folder)
    path.write_bytes(kept)
    (path.parent / "more").write_text("")
    with pytest.raises(ArtifactError, match="not in its manifest"):
        bundles.take_in(there, folder)
    (path.parent / "more").unlink()
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match="is no file"):
        bundles.take_in(there, folder)
    assert untouched(there)


def repacked(folder: Path, target: Path, *extra: tarfile.TarInfo) -> Path:
    """The folder as a tar file, with further members."""
    with tarfile.open(target, "w:gz") as tar:
        for path in [folder / "manifest.json", *sorted(folder.rglob("*"))]:
            if path.is_file() and (path.name != "manifest.json" or not tar.getmembers()):
                tar.add(path, path.relative_to(folder).as_posix())
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return target


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("runs/a/link", tarfile.SYMTYPE), ("runs/a/hard", tarfile.LNKTYPE), ("runs/a/device", tarfile.CHRTYPE),
        ("runs/a/pipe", tarfile.FIFOTYPE), ("runs/a/folder", tarfile.DIRTYPE), ("../evil", tarfile.REGTYPE),
        ("/tmp/evil", tarfile.REGTYPE), ("runs/a/unlisted", tarfile.REGTYPE),
    ],
)  # fmt: skip
def test_a_tar_with_more_than_its_files_is_refused(
    folder: Path, there: Project, tmp_path: Path, name: str, kind: bytes
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "../../../etc/passwd"
    with pytest.raises(ArtifactError):
        bundles.take_in(there, repacked(folder, tmp_path / "b.tgz", member))
    assert untouched(there)
    assert not (tmp_path / "evil").exists()


def test_a_tar_that_is_cut_short_or_unpacks_to_far_more_is_refused(
    folder: Path, there: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = repacked(folder, tmp_path / "b.tgz").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"\x1f\x8b", b"no tar" * 200):
        (tmp_path / "b.tgz").write_bytes(content)
        with pytest.raises(ArtifactError):
            bundles.take_in(there, tmp_path / "b.tgz")
    monkeypatch.setattr(bundle, "_HEADERS", 2**20)
    manifest = (folder / "manifest.json").read_bytes()
    bomb = tarfile.TarInfo("runs/a/bomb")
    bomb.size, bomb.pax_headers = 0, {"comment": "x" * 2**22}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        head = tarfile.TarInfo("manifest.json")
        head.size = len(manifest)
        tar.addfile(head, io.BytesIO(manifest))
        tar.addfile(bomb)
    (tmp_path / "b.tgz").write_bytes(gzip.compress(packed.getvalue()))
    with pytest.raises(ArtifactError, match="header of it is too large"):
        bundles.take_in(there, tmp_path / "b.tgz")
    assert untouched(there)


def test_a_bundle_larger_than_the_disk_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    with pytest.raises(EspError, match="GB are free"):
        bundle.unpack(folder, tmp_path / "staging", 100)


def test_an_outcome_that_points_outside_is_refused(here: Project, there: Project, tmp_path: Path) -> None:
    run = next(here.paths.runs.glob("esp-*"))
    outcome = json.loads((run / "outcome.json").read_text())
    outcome["artifacts"][0]["path"] = "../../../secret"
    (run / "outcome.json").write_text(json.dumps(outcome))
    bundles.export(here, [run.name], "", tmp_path / "b")
    with pytest.raises(ArtifactError, match="missing in the bundle"):
        bundles.take_in(there, tmp_path / "b")
    assert untouched(there)


def test_another_run_of_the_same_id_is_not_replaced(here: Project, there: Project, tmp_path: Path) -> None:
    run = next(here.paths.runs.glob("esp-*"))
    bundles.export(here, (), "", tmp_path / "b")
    shutil.copytree(run, there.paths.runs / run.name)
    (there.paths.runs / run.name / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match=r"differs in metrics\.jsonl"):
        bundles.take_in(there, tmp_path / "b")
    assert names(there) == [run.name]


def test_a_failure_while_moving_puts_everything_back(
    folder: Path, there: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        count.append(self)
        if len(count) == 3:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space"):
        bundles.take_in(there, folder)
    assert untouched(there)


def test_experts_go_along_when_asked(project: Any, tmp_path: Path) -> None:
    here = Project.open({"home": project.home})
    bundles.export(here, (), "", tmp_path / "b.tar", with_experts=True)
    (tmp_path / "there").mkdir()
    there = Project.open({"home": tmp_path / "there"})
    done = bundles.take_in(there, tmp_path / "b.tar")
    assert sorted(Path(name).name for name in done.experts) == [
        "expert-0000.json", "expert-0000.safetensors", "expert-0001.json", "expert-0001.safetensors",
    ]  # fmt: skip
    from espctl.services import verify
    from espctl.store.experts import list_experts

    assert [one.problems for one in verify.everything(there)] == [()] * 3
    assert len(list_experts(there.store)) == 2
