"""Logs never carry a secret."""

from __future__ import annotations

import json

import pytest
import structlog

from service.logs import configure_logs
from service.settings import Settings


@pytest.fixture(autouse=True)
def restored_logging() -> object:
    yield
    structlog.reset_defaults()


def test_keys_and_passwords_are_redacted_in_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_format="json"))
    key = "cliptune_live_0a1b2c3d_" + "x" * 43 + "_a1b2c3"
    log = structlog.get_logger()
    try:
        raise ValueError(f"refused {key}")
    except ValueError:
        log.exception("broke", action="test", url="postgresql://me:canary@host/db", header=f"Bearer {key}")
    line = capsys.readouterr().err
    assert "x" * 10 not in line and "canary" not in line
    document = json.loads(line)
    assert document["action"] == "test" and document["level"] == "error"


def test_level_is_honoured(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_format="json", log_level="warning"))
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]
