"""Whether a verified token holds now, and which rule of the operator it matches. Pure: times and rules are given.

Clocks differ, so that a time may be off by a minute. Rules are tried in their order and the first that matches
decides; if none does, the sentence names the claim that the rule which came nearest did not match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from service.errors import UnauthorizedError
from service.identity.token import malformed, shown, time_of, untrusted
from service.keys import CHALLENGE
from service.trust import TrustRule

#: How far an issuer's clock may differ from the database's, in seconds.
LEEWAY_SECONDS = 60


def require_current(claims: Mapping[str, Any], now: float) -> float:
    """Refuse a token outside of its time.

    Args:
        claims: verified.
        now: seconds since 1970.

    Returns:
        When it expires, in seconds since 1970.

    Raises:
        UnauthorizedError: ``token_expired``; ``token_untrusted`` before its time; ``token_malformed`` if it has no
            expiry or a time is none.
    """
    expires_at = time_of(claims, "exp")
    if expires_at is None:
        malformed("it has no expiry (exp)")
    if expires_at + LEEWAY_SECONDS <= now:
        raise UnauthorizedError(
            f"the identity token expired at {_written(expires_at)}: get a new one, each job of a pipeline has its own",
            code="token_expired",
            headers=CHALLENGE,
        )
    for claim in ("nbf", "iat"):
        begins_at = time_of(claims, claim)
        if begins_at is not None and begins_at - LEEWAY_SECONDS > now:
            untrusted(
                f"has {claim} {_written(begins_at)}, which is more than {LEEWAY_SECONDS} s ahead of this service's "
                "clock: compare the clocks"
            )
    return expires_at


def choose_rule(claims: Mapping[str, Any], rules: Sequence[TrustRule]) -> TrustRule:
    """The first rule that a token matches.

    Args:
        claims: verified.
        rules: those of its issuer, at least one.

    Returns:
        The rule.

    Raises:
        UnauthorizedError: ``token_untrusted``, with the claim's value and what the rule wants.
    """
    audiences = _audiences(claims)
    for_us = [rule for rule in rules if rule.audience in audiences]
    if not for_us:
        wanted = " or ".join(dict.fromkeys(shown(rule.audience) for rule in rules))
        untrusted(
            f"has the audience {shown(claims.get('aud'))}, and the rule wants {wanted}: ask for that audience"
        )
    misses = [(rule, rule.first_mismatch(claims)) for rule in for_us]
    for rule, miss in misses:
        if miss is None:
            return rule
    nearest, _ = max(misses, key=lambda each: _num_matches(each[0], claims))
    claim, pattern = nearest.first_mismatch(claims) or ("", "")
    untrusted(
        f"has the claim {claim} {shown(claims.get(claim))}, and the rule wants {shown(pattern)}: run the pipeline "
        "where that holds, or have the operator change CLIPTUNE_OIDC"
    )


def _num_matches(rule: TrustRule, claims: Mapping[str, Any]) -> int:
    """How many claims match before the first that does not."""
    miss = rule.first_mismatch(claims)
    return len(rule.match) if miss is None else rule.match.index(miss)


def _audiences(claims: Mapping[str, Any]) -> list[str]:
    given = claims.get("aud")
    listed = given if isinstance(given, list) else [given]
    return [each for each in listed if isinstance(each, str)]


def _written(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
