"""What an attempt to deliver leads to: delivered, tried again and when, given up, the webhook switched off. Pure.

Ten attempts over some three days; a receiver that is down for a weekend misses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from service.schemas import DeliveryState

#: Delay after the first, second, ... failed attempt, before jitter, in seconds; one attempt more than delays.
DELAYS_SECONDS = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_ATTEMPTS = len(DELAYS_SECONDS) + 1
#: Part of a delay that chance may add.
JITTER = 0.1
#: Longest wait that a receiver's Retry-After is granted, in seconds.
MAX_RETRY_AFTER_SECONDS = 86_400.0
#: A webhook without a success for so long since its first failure is switched off as soon as an event has used up its
#: attempts, in milliseconds. The time alone is not enough: nothing may have been sent meanwhile.
DISABLE_AFTER_MS = 5 * 86_400_000
_GONE = 410
#: Statuses whose Retry-After counts.
_BUSY = (429, 503)


@dataclass(frozen=True, slots=True)
class Attempted:
    """What came of one attempt.

    Attributes:
        attempt: which one it was, from 1.
        status: of the answer; None without one.
        error: why there was none.
        retry_after: the header of that name as it came; empty without one.
    """

    attempt: int
    status: int | None
    error: str = ""
    retry_after: str = ""

    @property
    def is_success(self) -> bool:
        """Whether the receiver took it."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class DeliveryDecision:
    """What to write after an attempt.

    Attributes:
        state: of the delivery.
        delay_seconds: until the next attempt, if it stays pending.
        failing_since: of the webhook from now on, in milliseconds since 1970; None after a success.
        disabled_reason: why the webhook is switched off; None leaves it on.
    """

    state: DeliveryState
    delay_seconds: float
    failing_since: int | None
    disabled_reason: str | None = None


def decide(attempted: Attempted, *, failing_since: int | None, now: int, jitter: float) -> DeliveryDecision:
    """What an attempt leads to.

    Args:
        attempted: the attempt.
        failing_since: when the webhook's first attempt since its last success failed; None if the last one succeeded.
        now: milliseconds since 1970.
        jitter: drawn by the caller, uniform in [0, 1]; it keeps events that failed together apart.

    Returns:
        The decision. A webhook that is switched off keeps what is pending for when it is switched on again.

    Raises:
        ValueError: if the attempt is below 1 or the jitter out of its range.

    Example:
        >>> failed = Attempted(attempt=2, status=500)
        >>> decide(failed, failing_since=None, now=1000, jitter=0.0).delay_seconds
        300.0
        >>> decide(Attempted(attempt=1, status=204), failing_since=7, now=1000, jitter=0.0).state
        <DeliveryState.DELIVERED: 'delivered'>
    """
    if attempted.attempt < 1:
        raise ValueError(f"attempt must be >= 1, got {attempted.attempt}")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter must be in [0, 1], got {jitter}")
    if attempted.is_success:
        return DeliveryDecision(DeliveryState.DELIVERED, 0.0, None)
    since = now if failing_since is None else failing_since
    reason = None
    if attempted.status == _GONE:
        reason = "the receiver answered 410 Gone"
    elif attempted.attempt >= MAX_ATTEMPTS and now - since >= DISABLE_AFTER_MS:
        reason = f"every attempt failed for {DISABLE_AFTER_MS // 86_400_000} days"
    if attempted.attempt >= MAX_ATTEMPTS:
        return DeliveryDecision(DeliveryState.FAILED, 0.0, since, reason)
    delay = DELAYS_SECONDS[attempted.attempt - 1] * (1 + JITTER * jitter)
    if attempted.status in _BUSY:
        delay = max(delay, read_retry_after(attempted.retry_after, now))
    return DeliveryDecision(DeliveryState.PENDING, delay, since, reason)


def read_retry_after(text: str, now: int) -> float:
    """How long a receiver asks to be left alone.

    Args:
        text: whole seconds, or a date as in HTTP; anything else is no wish.
        now: milliseconds since 1970.

    Returns:
        Seconds in [0, a day].

    Example:
        >>> read_retry_after("120", 0), read_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 0), read_retry_after("x", 0)
        (120.0, 60.0, 0.0)
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        wish = float(text[:15])
    else:
        try:
            moment = parsedate_to_datetime(text)
            wish = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now / 1000
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, wish), MAX_RETRY_AFTER_SECONDS)
