"""Logs never carry a secret."""

from __future__ import annotations

import json

import pytest
import structlog

from service.logs import configure_logs, without_secrets
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:canary@h/db", "postgresql://[redacted]@h/db"),
        ("postgresql://u:can%40ary%2F1@h/db", "postgresql://[redacted]@h/db"),
        ("postgresql://u:can@ary/w@h:5432/db", "postgresql://[redacted]@h:5432/db"),
        ("redis://:canary@h", "redis://[redacted]@h"),
        ("postgresql://u:can'ary@h/db", "postgresql://[redacted]@h/db"),
        (
            "postgresql://h/db?user=u&password=canary&x=1",
            "postgresql://h/db?user=u&password=[redacted]&x=1",
        ),
        ("postgresql://h/db?password=can%26ary%20", "postgresql://h/db?password=[redacted]"),
        ("host=h PASSWORD='can ary' user=u", "host=h PASSWORD=[redacted] user=u"),
        # A word ends a URL: what comes after it stays.
        ("'http://u:canary@h/' asked of me@example.org", "'http://[redacted]@h/' asked of me@example.org"),
        (
            "listens on http://h:80/docs, mail me@example.org",
            "listens on http://h:80/docs, mail me@example.org",
        ),
        ('"http://h:80/","me@example.org"', '"http://h:80/","me@example.org"'),
        ("ssh://git@h/a:b", "ssh://git@h/a:b"),
    ],
)
def test_passwords_are_cut_out_and_nothing_else(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


def test_level_is_honoured(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_format="json", log_level="warning"))
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]
