"""What a slot plays: the transactions of a recorded study, stretched to a study of another length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_recording(path: Path) -> dict[str, Any]:
    """A recorded study."""
    recording: dict[str, Any] = json.loads(path.read_text())
    return recording


def script(recording: dict[str, Any], study_seconds: float) -> list[dict[str, Any]]:
    """The recorded transactions stretched to a study of another length, with progress as often as one that long tells.

    Args:
        recording: of a study.
        study_seconds: how long the studies are that are played.

    Returns:
        Entries with ``at`` in seconds since the study was acquired, ``name`` and ``writes``, in order.
    """
    factor = study_seconds / recording["transactions"][-1]["at"]
    entries = [
        {"at": each["at"] * factor, "name": _name(each["writes"]), "writes": each["writes"]}
        for each in recording["transactions"]
    ]
    entries += [
        {"at": at, "name": "progress", "writes": [{"kind": "progress"}]}
        for at in _progress_times(study_seconds)
        if entries[0]["at"] < at
    ]
    return sorted(entries, key=lambda entry: entry["at"])


def _progress_times(study_seconds: float) -> Iterator[float]:
    """As a worker tells progress: once a second, then after each hundredth of the time so far, at least every 15 s."""
    at = 1.0
    while at < study_seconds:
        yield at
        at += min(max(1.0, at / 100), 15.0)


def _name(writes: list[dict[str, Any]]) -> str:
    kinds = {write["kind"] for write in writes}
    order = ("recommendation", "probe", "cohort", "trial", "rung", "progress")
    return next((kind for kind in order if kind in kinds), "other")


def writes_of_kind(entries: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [write for entry in entries for write in entry["writes"] if write["kind"] == kind]
