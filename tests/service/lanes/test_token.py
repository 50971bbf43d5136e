"""Lease tokens: what is one, and what it proves."""

from __future__ import annotations

import pytest

from service.lanes.token import LeaseToken, digest_of, draw_secret


def test_a_token_is_read_as_it_was_written() -> None:
    token = LeaseToken(12, 3_000_000_000, draw_secret())
    assert LeaseToken.parse(str(token)) == token and len(token.secret) == 43
    assert draw_secret() != draw_secret()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hunter2",
        f"1.2.{'A' * 42}",
        f"1.2.{'A' * 44}",
        f" 1.2.{'A' * 43}",
        f"1.2.{'A' * 43}\n",
        f"-1.2.{'A' * 43}",
        f"{10**9}.2.{'A' * 43}",
        f"1.{10**18}.{'A' * 43}",
        f"\u0661.2.{'A' * 43}",
        f"1.2.{'A' * 42}\u00e9",
    ],
)
def test_what_is_no_token_is_refused_before_the_database(text: str) -> None:
    with pytest.raises(ValueError, match="lease_token that trials:ask answered"):
        LeaseToken.parse(text)


def test_a_token_proves_its_own_lease_alone() -> None:
    secret = draw_secret()
    token, digest = LeaseToken(0, 2, secret), digest_of(secret)
    assert token.proves(2, digest)
    assert not token.proves(1, digest) and not token.proves(3, digest)
    assert not token.proves(2, digest_of(draw_secret()))
    assert not token.proves(2, None), "the lease was reaped"
