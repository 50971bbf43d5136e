"""An identity token as text: its form, and what it claims before anything of it is verified.

A token is three base64url parts, HEADER.CLAIMS.SIGNATURE (RFC 7515, RFC 7519). Reading is strict, because a second
reader of the same bytes must not see another token: no unknown alphabet, no name twice in an object, no NaN, no
critical extension. Nothing that a token says about where its keys are (``jku``, ``x5u``, ``jwk``) is looked at.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from service.errors import UnauthorizedError
from service.keys import CHALLENGE
from service.trust import without_duplicates

#: Longest token that is read, in characters.
MAX_CHARACTERS = 8192
#: Signatures that are verified; what an issuer signs with a secret (HS256) anybody could sign who knows it.
ALGORITHMS = ("RS256", "ES256")
_FORM = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)
_MAX_KEY_ID = 200
#: Latest time that a claim may name, in seconds since 1970: the year 9999.
_MAX_TIME = 253_402_300_799
_MAX_SHOWN = 200


@dataclass(frozen=True)
class Token:
    """A token of the right form. Its claims are worth nothing until its signature is verified.

    Attributes:
        text: as it was sent.
        algorithm: one of `ALGORITHMS`.
        key_id: which of the issuer's keys is said to have signed it.
        issuer: who is said to have made it.
        claims: everything else too.
    """

    text: str
    algorithm: str
    key_id: str
    issuer: str
    claims: Mapping[str, Any]


def has_token_form(text: str) -> bool:
    """Whether a caller means a text as an identity token; an access key has no dot and no such beginning.

    Args:
        text: what the caller sent.

    Example:
        >>> has_token_form("eyJhbGciOiJSUzI1NiJ9.e30.c2ln"), has_token_form("cliptune_live_0a1B2c3D")
        (True, False)
    """
    return text.startswith("eyJ") or text.count(".") == 2


def read_token(text: str) -> Token:
    """Take a token apart.

    Args:
        text: what the caller sent.

    Returns:
        The token, unverified.

    Raises:
        UnauthorizedError: ``token_malformed`` if it can't be read, ``token_untrusted`` if its algorithm is none that
            is verified.
    """
    if len(text) > MAX_CHARACTERS:
        malformed(f"it has {len(text)} characters, and at most {MAX_CHARACTERS} are read")
    if not _FORM.fullmatch(text):
        malformed("it is not three parts of letters, digits, '-' and '_', joined by dots")
    first, second, _ = text.split(".")
    header, claims = _object(first, "header"), _object(second, "claims")
    if "crit" in header:
        malformed("its header asks for extensions (crit), and none is known here")
    if str(header.get("typ", "JWT")).upper() != "JWT":
        malformed(f"its typ is {shown(header['typ'])}, and must be JWT")
    algorithm, key_id, issuer = header.get("alg"), header.get("kid"), claims.get("iss")
    if algorithm not in ALGORITHMS:
        untrusted(f"is signed with alg {shown(algorithm)}: only {' and '.join(ALGORITHMS)} are taken")
    if not isinstance(key_id, str) or not 1 <= len(key_id) <= _MAX_KEY_ID:
        malformed(f"its header must name the key in kid, 1 to {_MAX_KEY_ID} characters, got {shown(key_id)}")
    if not isinstance(issuer, str) or not issuer:
        malformed(f"its claim iss must be a text, got {shown(issuer)}")
    return Token(text, str(algorithm), key_id, issuer, claims)


def time_of(claims: Mapping[str, Any], claim: str) -> float | None:
    """A time that a token claims, in seconds since 1970; None if it does not.

    Args:
        claims: of the token.
        claim: its name: ``exp``, ``nbf`` or ``iat``.

    Returns:
        The time.

    Raises:
        UnauthorizedError: ``token_malformed`` if it is no number of seconds up to the year 9999.
    """
    value = claims.get(claim)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= _MAX_TIME:
        malformed(f"its claim {claim} must be a time in seconds since 1970, got {shown(value)}")
    return float(value)


def shown(value: object) -> str:
    """A value from a token for a sentence: on one line and not too long, whatever it holds.

    Example:
        >>> shown("refs/heads/main"), shown(None), len(shown("x" * 1000))
        ("'refs/heads/main'", 'nothing', 203)
    """
    text = "nothing" if value is None else ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def malformed(reason: str) -> NoReturn:
    """Refuse a token that can't be read.

    Raises:
        UnauthorizedError: ``token_malformed``.
    """
    raise UnauthorizedError(
        f"this is no identity token: {reason}; pass on what the pipeline was given, whole and without quotes",
        code="token_malformed",
        headers=CHALLENGE,
    )


def untrusted(reason: str) -> NoReturn:
    """Refuse a token that nobody vouches for here.

    Raises:
        UnauthorizedError: ``token_untrusted``.
    """
    raise UnauthorizedError(f"the identity token {reason}", code="token_untrusted", headers=CHALLENGE)


def _object(part: str, name: str) -> dict[str, Any]:
    """A part's JSON object.

    Raises:
        UnauthorizedError: ``token_malformed``.
    """
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True)
        found = json.loads(
            raw.decode(), object_pairs_hook=without_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        # Of an error over bytes only its kind is told: the sentence is for people.
        reason = f": {error}" if str(error).startswith("the name") else ""
        malformed(f"its {name} is no JSON in base64url{reason}")
    if not isinstance(found, dict):
        malformed(f"its {name} must be a JSON object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
