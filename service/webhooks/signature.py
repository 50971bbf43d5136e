"""Sign and verify webhooks as Standard Webhooks has it; a receiver may import this file, it loads nothing else.

The signature is over ``ID.TIMESTAMP.BODY``, the raw bytes of the body, with HMAC-SHA256. While a secret is rotated
there are several, separated by spaces, and one that fits is enough.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence

from service.errors import ServiceError

#: How far a timestamp may be from the receiver's clock, in seconds.
TOLERANCE_SECONDS = 300.0
_PREFIX = "whsec_"
_SECRET_BYTES = 32


class WebhookSignatureError(ServiceError, ValueError):
    """A request is not the service's, was changed, or is too old: answer 400 and look at nothing in it."""

    code = "webhook_not_verified"


def new_secret() -> str:
    """A secret of 32 random bytes.

    Returns:
        ``whsec_`` and its base64.
    """
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature.

    Args:
        secret: ``whsec_...``; the prefix may be left out.
        message_id: the header ``webhook-id``.
        timestamp: the header ``webhook-timestamp``, in seconds since 1970.
        body: the raw body.

    Returns:
        ``v1,`` and the base64 of the HMAC.

    Raises:
        ValueError: if the secret is not base64.

    Source:
        The Standard Webhooks specification, section "Signature scheme",
        https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
        The example is the test vector of its reference libraries.

    Example:
        >>> secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        >>> sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
        'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
    """
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the secret must be whsec_ and base64: copy it whole") from None
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def signed_headers(
    signing_secrets: Sequence[str], message_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """The headers that a receiver verifies.

    Args:
        signing_secrets: newest first, at least one.
        message_id: of the event; the same at every attempt.
        timestamp: of the attempt, in seconds since 1970.
        body: the raw body.

    Returns:
        ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``.
    """
    signatures = [sign(secret, message_id, timestamp, body) for secret in signing_secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def verify(
    headers: Mapping[str, str],
    body: bytes,
    known_secrets: Sequence[str],
    tolerance: float = TOLERANCE_SECONDS,
    *,
    now: float | None = None,
) -> str:
    """Check that a request came from whoever knows the secret, unchanged, and just now.

    Compares in constant time. Keep the id that it returns for a day or longer and do nothing for one that you have
    seen: an event may come twice.

    Args:
        headers: of the request, in any spelling of upper and lower case.
        body: the raw bytes that came, before anything parsed them.
        known_secrets: the one shown when the webhook was made, and while you rotate both.
        tolerance: how far the timestamp may be from the clock in either direction, in seconds.
        now: the clock, in seconds since 1970; None reads it.

    Returns:
        The event's id.

    Raises:
        WebhookSignatureError: if a header is missing, the time is out of tolerance, or no signature fits.
        ValueError: if a secret is not base64.
    """
    given = {name.lower(): value for name, value in headers.items()}
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if not given.get(name):
            raise WebhookSignatureError(f"the header {name} is missing: this is no signed webhook, refuse it")
    timestamp = _read_timestamp(given["webhook-timestamp"])
    age = (time.time() if now is None else now) - timestamp
    if abs(age) > tolerance:
        raise WebhookSignatureError(
            f"the webhook's timestamp is {age:.0f} s from this clock, allowed are {tolerance:g} s: refuse it as a "
            "repetition, and check that this machine's clock is right"
        )
    message_id = given["webhook-id"]
    wanted = [sign(secret, message_id, timestamp, body).encode() for secret in known_secrets]
    found = given["webhook-signature"].encode("utf-8", "replace").split(b" ")
    # Every pair is compared, whatever the ones before gave.
    if not sum(hmac.compare_digest(one, other) for one in wanted for other in found):
        raise WebhookSignatureError(
            "no signature of the webhook fits a known secret: check that the secret is this webhook's, and that the "
            "body is the raw one, not parsed and written again"
        )
    return message_id


def _read_timestamp(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise WebhookSignatureError(
            f"the header webhook-timestamp must be whole seconds since 1970, got {text[:40]!r}: refuse it"
        )
    return int(text)
