"""Where a study's checkpoints are, and their end: they are deleted when nobody can go on from them.

The training process writes and reads them (`tuner.training.checkpoint`); the worker only names their folder, from its
settings and from ids that the service made. Nothing of a request enters a path.
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

log = structlog.get_logger(__name__)

_STUDY_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def study_folder(root: Path, study_id: str) -> Path:
    """Where a study's checkpoints are.

    Args:
        root: folder of all checkpoints, absolute.
        study_id: a uuid as the service writes it.

    Returns:
        A folder of the study's own below ``root``.

    Raises:
        ValueError: if ``root`` is relative or the id is no such uuid: neither may be a path of somebody's choice.
    """
    if not root.is_absolute():
        raise ValueError(f"the folder of checkpoints must be absolute, got {root}")
    if not _STUDY_ID.fullmatch(study_id):
        raise ValueError(f"a study's id must be a lower-case uuid, got {study_id!r}")
    return root / study_id


def cohort_folder(root: Path, study_id: str, cohort: int) -> Path:
    """Where one cohort's checkpoints are.

    Args:
        root: folder of all checkpoints, absolute.
        study_id: a uuid as the service writes it.
        cohort: number of the cohort, from 0.

    Returns:
        A folder of the cohort's own.
    """
    return study_folder(root, study_id) / f"cohort-{int(cohort)}"


def remove(folder: Path) -> None:
    """Delete a folder of checkpoints; one that is not there, or can't be deleted, is left to the next `sweep`."""
    shutil.rmtree(folder, ignore_errors=True)


def sweep(database: Database, root: Path) -> None:
    """Delete what studies of this database left that ended elsewhere, or whose worker died before it could.

    Args:
        database: its ended studies lose their checkpoints; folders of studies it does not know are left alone.
        root: folder of all checkpoints.
    """
    try:
        found = [each.name for each in root.iterdir() if _STUDY_ID.fullmatch(each.name)]
        with database.read() as session:
            query = select(StudyRow.id, JobRow.state).join(JobRow, JobRow.id == StudyRow.job_id)
            rows = session.execute(query.where(StudyRow.id.in_(found))).all() if found else []
    except (OSError, SQLAlchemyError):
        return
    for study_id, state in rows:
        if JobState(state).is_done:
            log.info("checkpoints deleted", action="checkpoints_deleted", study_id=study_id)
            remove(study_folder(root, study_id))
