"""Where the service says it listens."""

from __future__ import annotations

import socket

import pytest

from service.cli.server import url_of
from service.settings import Settings


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:{}"),
        ("0.0.0.0", "http://127.0.0.1:{}"),
        ("::1", "http://[::1]:{}"),
        ("::", "http://[::1]:{}"),
        ("gpu-host", "http://gpu-host:{}"),
    ],
)
def test_url_can_be_opened_from_this_machine(host: str, url: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        assert url_of(Settings(host=host), listener) == url.format(listener.getsockname()[1])
