"""A study's question as it is stored, by this version or an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.spec import StudySpec, study_spec


def stored_spec(document: Mapping[str, Any]) -> StudySpec:
    """Read a stored question.

    Args:
        document: what `tuner.spec.StudySpec.to_json` wrote, in whatever version.

    Returns:
        The spec. One that was stored before there were confirmation rounds asks for none.

    Example:
        >>> stored_spec({"workload": "w"}).num_confirm_seeds
        0
    """
    return study_spec({"num_confirm_seeds": 0} | dict(document))


def job_kind(spec: StudySpec) -> str:
    """What sort of job drives a study: a worker trains one ``study`` at a time, and looks after many ``external`` ones.

    Args:
        spec: its question.

    Returns:
        The kind, for the queue.
    """
    return "external" if spec.external else "study"
