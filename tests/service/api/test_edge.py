"""Which hosts the service answers to, IPv6 included."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.edge import allowed_hosts
from service.settings import Settings


@pytest.mark.parametrize(
    ("host", "header", "status"),
    [
        ("::1", "[::1]:8765", 200),
        ("2001:db8::1", "[2001:db8::1]:8765", 200),
        ("2001:db8::1", "[2001:DB8:0:0::1]", 200),  # another spelling of the same address
        ("[2001:db8::1]", "[2001:db8::1]", 200),
        ("2001:db8::1", "[2001:db8::2]:8765", 400),
        ("2001:db8::1", "[junk]", 400),
        ("Example.org", "example.ORG:80", 200),
        ("example.org", "example.org.evil:80", 400),
    ],
)
def test_the_host_that_the_service_listens_on_is_answered(
    api: Any, host: str, header: str, status: int
) -> None:
    app = create_app(Settings(home=api.settings.home, host=host), api.database)
    with TestClient(app, base_url="http://127.0.0.1") as http:
        response = http.get("/healthz", headers={"Host": header})
    assert response.status_code == status
    assert status == 200 or response.json()["code"] == "host_not_allowed"


def test_an_address_among_the_allowed_hosts_needs_no_brackets() -> None:
    found = allowed_hosts(Settings(allowed_hosts="2001:db8::7, [2001:db8::8], Proxy.example"))
    assert found is not None and found >= {"[2001:db8::7]", "[2001:db8::8]", "proxy.example", "[::1]"}


@pytest.mark.parametrize(
    "hosts", [("evil.example", "localhost"), ("localhost", "evil.example"), ("localhost",) * 2]
)
def test_several_hosts_are_none(api: Any, hosts: tuple[str, ...]) -> None:
    """The application reads the first of them: what was allowed would not be what it puts into addresses."""
    headers = [("Authorization", f"Bearer {api.key}"), *(("Host", host) for host in hosts)]
    response = api.with_key(None).get("/v1/recommendations/badge?workload=w", headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "host_not_allowed")
    assert "send one" in response.json()["detail"]
