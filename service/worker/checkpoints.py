"""Where a study's checkpoints are, and their end: they are deleted when nobody can go on from them.

The training process writes and reads them (`tuner.training.checkpoint`); the worker only names their place, from its
settings and from ids that the service made. Nothing of a request enters a path. The place is a folder on a disk or an
fsspec URL; one that can't be reached is logged and left to the next `sweep`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from service.db.models import JobRow, StudyRow
from service.db.session import Database
from service.states import JobState
from tuner.training.parts import Grid
from tuner.training.remote import RemoteFolder, is_url

log = structlog.get_logger(__name__)

_STUDY_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Studies asked for in one query: databases have their limits.
_AT_ONCE = 1_000
#: As `tuner.training.stores` writes it: the step comes first.
_CHECKPOINT = re.compile(r"(\d{10})-[0-9a-f]{12}")


def study_folder(root: Path | str, study_id: str) -> str:
    """Where a study's checkpoints are.

    Args:
        root: place of all checkpoints: an absolute path, or an fsspec URL.
        study_id: a uuid as the service writes it.

    Returns:
        A place of the study's own below ``root``.

    Raises:
        ValueError: if ``root`` is relative or the id is no such uuid: neither may be a path of somebody's choice.
    """
    if not is_url(root) and not Path(root).is_absolute():
        raise ValueError(f"the folder of checkpoints must be absolute, got {root}")
    if not _STUDY_ID.fullmatch(study_id):
        raise ValueError(f"a study's id must be a lower-case uuid, got {study_id!r}")
    return f"{str(root).rstrip('/')}/{study_id}"


def cohort_folder(root: Path | str, study_id: str, cohort: int) -> str:
    """Where one cohort's checkpoints are.

    Args:
        root: place of all checkpoints.
        study_id: a uuid as the service writes it.
        cohort: number of the cohort, from 0.

    Returns:
        A place of the cohort's own.
    """
    return f"{study_folder(root, study_id)}/cohort-{int(cohort)}"


def part_folder(root: Path | str, study_id: str, cohort: int, grid: Grid, part: int) -> str:
    """Where the checkpoints of one part of a cohort are.

    Args:
        root: place of all checkpoints.
        study_id: a uuid as the service writes it.
        cohort: number of the cohort, from 0.
        grid: how the cohort is split.
        part: index of the part, from 0.

    Returns:
        A place of the part's own.
    """
    return f"{cohort_folder(root, study_id, cohort)}/{grid}/{int(part)}"


def find_grid(root: Path | str, study_id: str, cohort: int) -> Grid | None:
    """How a cohort was split when its checkpoints were written.

    Args:
        root: place of all checkpoints.
        study_id: a uuid as the service writes it.
        cohort: number of the cohort, from 0.

    Returns:
        The grid that got furthest, if several have checkpoints; None if none has, or if that can't be told.
    """
    folder = cohort_folder(root, study_id, cohort)
    found: list[tuple[int, Grid]] = []
    try:
        for name in _names(folder):
            try:
                grid = Grid.parse(name)
            except ValueError:
                continue
            steps = [_newest_step(f"{folder}/{name}/{part}") for part in _names(f"{folder}/{name}")]
            found += [(step, grid) for step in steps if step is not None]
    except OSError as error:
        _log_unreachable(folder, error)
        return None
    return max(found, default=(0, None), key=lambda each: each[0])[1]


def remove_cohort(root: Path | str, study_id: str, cohort: int) -> None:
    """Delete a cohort's checkpoints, however it was split.

    Args:
        root: place of all checkpoints.
        study_id: a uuid as the service writes it.
        cohort: number of the cohort, from 0.
    """
    remove(cohort_folder(root, study_id, cohort))


def remove(folder: Path | str) -> None:
    """Delete a place of checkpoints; one that is not there, or can't be deleted, is left to the next `sweep`."""
    if not is_url(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        RemoteFolder(str(folder)).delete()
    except OSError as error:
        _log_unreachable(str(folder), error)


def sweep(database: Database, root: Path | str) -> None:
    """Delete what studies of this database left that ended elsewhere, or whose worker died before it could.

    Args:
        database: its ended studies lose their checkpoints; folders of studies it does not know are left alone.
        root: place of all checkpoints.
    """
    try:
        found = [name for name in _names(str(root)) if _STUDY_ID.fullmatch(name)]
    except OSError as error:
        _log_unreachable(str(root), error)
        return
    for first in range(0, len(found), _AT_ONCE):
        try:
            with database.read() as session:
                query = select(StudyRow.id, JobRow.state).join(JobRow, JobRow.id == StudyRow.job_id)
                asked = StudyRow.id.in_(found[first : first + _AT_ONCE])
                rows = session.execute(query.where(asked)).all()
        except SQLAlchemyError:
            return
        for study_id, state in rows:
            if JobState(state).is_done:
                log.info("checkpoints deleted", action="checkpoints_deleted", study_id=study_id)
                remove(study_folder(root, study_id))


def _newest_step(folder: str) -> int | None:
    """The step of a part's newest checkpoint; one without a manifest is none."""
    for name in reversed(_names(folder)):
        if (found := _CHECKPOINT.fullmatch(name)) and "manifest.json" in _names(f"{folder}/{name}"):
            return int(found[1])
    return None


def _names(folder: str) -> list[str]:
    """What is directly in a place, in order; empty if it is not there.

    Raises:
        OSError: if it can't be listed.
    """
    if is_url(folder):
        return RemoteFolder(folder).names()
    try:
        return sorted(each.name for each in Path(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _log_unreachable(place: str, error: OSError) -> None:
    log.warning("checkpoints unreachable", action="checkpoints_unreachable", place=place, error=str(error))
