"""The application's housekeeping outlives whatever goes wrong in one round."""

from __future__ import annotations

import time
from typing import Any

import pytest
import structlog
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from service.api.app import create_app
from service.jobs.queue import Queue


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (OperationalError("SELECT 1", {}, Exception("gone")), "housekeeping failed"),
        (RuntimeError("can't start new thread"), "housekeeping broke"),
        (KeyError("a bug"), "housekeeping broke"),
    ],
    ids=["database", "threads", "bug"],
)
def test_the_reaper_goes_on_after_any_error(
    api: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, event: str
) -> None:
    rounds = 0

    def reap(queue: Queue) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise error

    monkeypatch.setattr(Queue, "reap", reap)
    settings = api.settings.model_copy(update={"reap_seconds": 0.01})
    with structlog.testing.capture_logs() as logs, TestClient(create_app(settings, api.database)):
        deadline = time.monotonic() + 10
        while rounds < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert rounds >= 3
    assert [line["event"] for line in logs if line.get("action") == "housekeeping_failed"] == [event]
