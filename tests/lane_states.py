"""Lanes as their rows have them, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from service.lanes import LaneState, LaneStatus


def lane(
    trial_id: str, seed: int, state: LaneStatus, reports: dict[int, float | None], **more: Any
) -> LaneState:
    last = max(reports, default=None)
    values: dict[str, Any] = {
        "position": 0,
        "is_probe": False,
        "fence": 1,
        "client_id": "c",
        "attempt": 0,
        "lost_count": 0,
        "last_cause": None,
        "last_error": None,
        "step": last,
        "value": None if last is None else reports[last],
        "initial": reports.get(0),
        "record": None,
        "norms": (),
        "created_at": 0,
        "leased_at": 1000,
        "finished_at": None if state.is_open else 3500,
    }
    return LaneState(trial_id=trial_id, seed=seed, state=state, reports=reports, **(values | more))
