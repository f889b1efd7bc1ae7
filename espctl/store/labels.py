"""What people put on a run: a name, a note, and tags. They lie in the run's folder and are copied into the database.

Who changes them holds the database's write lock from reading the file to writing the rows: of two processes that
change one run at a time, neither loses what the other wrote. The file is written first; a crash between the two leaves
a row that the next `runs sync` renews.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from esp.errors import InputError
from esp.files import write_json
from espctl.errors import RunError
from espctl.store import folder as folders
from espctl.store.engine import Store
from espctl.store.models import Run, Tag
from espctl.store.records import Labels

NAME_LENGTH = 80
NOTE_LENGTH = 10_000


def change(store: Store, run_id: str, edit: Callable[[Labels], Labels]) -> Labels:
    """Change the labels of a run, in its folder and in the database; returns the new ones.

    Raises:
        RunError: there is no such run, its folder is gone, or another run has the name.
        ArtifactError: the file in the folder is damaged.
    """
    with store.write() as session:
        run = session.get(Run, run_id)
        if run is None:
            raise RunError(f"there is no run {run_id!r}", "espctl runs ls lists the runs")
        folder = store.home / run.folder
        if not folder.is_dir():
            raise RunError(f"the folder of {run_id} is gone: {folder}", f"remove the run: espctl runs rm {run_id}")
        known = folders.labels(folder) or of(session, run)
        new = edit(known)
        if new.name and new.name != known.name:
            _require_free(session, run_id, new.name)
        write_json(folder / folders.LABELS, {"name": new.name, "note": new.note, "tags": list(new.tags)})
        enter(session, run, new)
    return new


def of(session: Session, run: Run) -> Labels:
    """The labels that the database has of a run."""
    tags = session.scalars(select(Tag.tag).where(Tag.run_id == run.id).order_by(Tag.tag))
    return Labels(run.name, run.note, tuple(tags))


def enter(session: Session, run: Run, labels: Labels) -> None:
    """Make a run's row and its tags say what `labels` say."""
    run.name, run.note = labels.name, labels.note
    session.flush()
    session.execute(delete(Tag).where(Tag.run_id == run.id))
    session.add_all(Tag(run_id=run.id, tag=tag) for tag in labels.tags)
    session.flush()


def tagged(add: Iterable[str], remove: Iterable[str] = ()) -> Callable[[Labels], Labels]:
    """The change that puts words on a run and takes words off it.

    Raises:
        InputError: a tag that is empty or holds spaces, control characters, or what a filter could not name.
    """
    added, removed = set(add), set(remove)
    for tag in added:
        _require_word(tag, "a tag")
    return lambda labels: replace(labels, tags=tuple(sorted((set(labels.tags) | added) - removed)))


def named(name: str | None) -> Callable[[Labels], Labels]:
    """The change that gives a run another name, or none.

    Raises:
        InputError: a name with spaces or control characters, or a very long one.
    """
    if name is not None:
        _require_word(name, "a name")
    return lambda labels: replace(labels, name=name)


def noted(note: str | None) -> Callable[[Labels], Labels]:
    """The change that writes another note, or removes it.

    Raises:
        InputError: it is longer than 10,000 characters, or no text.
    """
    if note is not None and (len(note) > NOTE_LENGTH or any("\ud800" <= letter <= "\udfff" for letter in note)):
        raise InputError("the note cannot be kept", f"write text of at most {NOTE_LENGTH} characters")
    return lambda labels: replace(labels, note=note)


def _require_word(word: str, what: str) -> None:
    plain = word.isprintable() and not any(letter.isspace() or letter in "\"'(),/\\" for letter in word)
    if not word or not plain or word.startswith("-") or len(word) > NAME_LENGTH:
        raise InputError(f"{word!r} cannot be {what}", "use one word without quotes, commas, brackets and slashes")


def _require_free(session: Session, run_id: str, name: str) -> None:
    """A name must mean one run: it can be no other run's name, nor its id."""
    taken = session.scalar(select(Run.id).where((Run.name == name) | (Run.id == name), Run.id != run_id).limit(1))
    if taken:
        raise RunError(f"the name {name!r} is taken by {taken}", "choose another, or rename that run first")
