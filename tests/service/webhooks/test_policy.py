"""What an attempt leads to: a table with its arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.schemas import DeliveryState
from service.webhooks.policy import (
    DELAYS_SECONDS,
    DISABLE_AFTER_MS,
    JITTER,
    MAX_ATTEMPTS,
    Attempted,
    decide,
    read_retry_after,
)

NOW = 1_700_000_000_000  # Tue, 14 Nov 2023 22:13:20 GMT


def test_ten_attempts_take_about_three_days() -> None:
    assert MAX_ATTEMPTS == 10
    # 5 s + 5 min + 30 min + 2 h + 5 h + 10 h + 14 h + 20 h + 24 h = 75 h 35 min 5 s.
    assert sum(DELAYS_SECONDS) == 75 * 3600 + 35 * 60 + 5
    assert list(DELAYS_SECONDS) == sorted(DELAYS_SECONDS)


@pytest.mark.parametrize("attempt", range(1, MAX_ATTEMPTS))
@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_a_failure_is_tried_again_after_the_delay(attempt: int, jitter: float) -> None:
    decision = decide(Attempted(attempt, 500), failing_since=None, now=NOW, jitter=jitter)
    assert decision.state is DeliveryState.PENDING
    assert decision.delay_seconds == pytest.approx(DELAYS_SECONDS[attempt - 1] * (1 + JITTER * jitter))
    assert (decision.failing_since, decision.disabled_reason) == (NOW, None)


def test_the_last_failure_is_the_end() -> None:
    decision = decide(Attempted(MAX_ATTEMPTS, None, "no answer"), failing_since=5, now=NOW, jitter=0.5)
    assert decision.state is DeliveryState.FAILED


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_any_2xx_is_delivered_and_forgives(status: int) -> None:
    decision = decide(Attempted(MAX_ATTEMPTS, status), failing_since=1, now=NOW, jitter=0.0)
    assert decision.state is DeliveryState.DELIVERED
    assert (decision.failing_since, decision.disabled_reason) == (None, None)


@pytest.mark.parametrize("status", [None, 100, 199, 301, 302, 307, 308, 400, 401, 404, 429, 500, 503, 599])
def test_anything_else_is_tried_again(status: int | None) -> None:
    decision = decide(Attempted(1, status), failing_since=None, now=NOW, jitter=0.0)
    assert (decision.state, decision.delay_seconds) == (DeliveryState.PENDING, 5.0)


def test_gone_switches_the_webhook_off_and_keeps_the_event() -> None:
    decision = decide(Attempted(1, 410), failing_since=None, now=NOW, jitter=0.0)
    assert decision.state is DeliveryState.PENDING
    assert decision.disabled_reason == "the receiver answered 410 Gone"


@pytest.mark.parametrize(
    ("attempt", "since", "reason"),
    [
        (MAX_ATTEMPTS, NOW - DISABLE_AFTER_MS, "every attempt failed for 5 days"),
        (MAX_ATTEMPTS, NOW - DISABLE_AFTER_MS + 1, None),
        # Weeks after the failure before, in which nothing was sent: it has its other attempts.
        (1, NOW - 10 * DISABLE_AFTER_MS, None),
    ],
)
def test_five_days_of_failures_switch_it_off(attempt: int, since: int, reason: str | None) -> None:
    decision = decide(Attempted(attempt, 500), failing_since=since, now=NOW, jitter=0.0)
    assert (decision.failing_since, decision.disabled_reason) == (since, reason)


@pytest.mark.parametrize(
    ("status", "retry_after", "seconds"),
    [
        (429, "120", 120.0),
        (503, "120", 120.0),
        (500, "120", 5.0),  # only where the status means "busy"
        (429, "1", 5.0),  # never sooner than the back-off
        (429, "9999999999999999999", 86_400.0),  # at most a day
        (429, "Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        (429, "Tue, 14 Nov 2023 22:14:20", 60.0),
        (429, "Tue, 14 Nov 2023 21:00:00 GMT", 5.0),  # over
        (429, "soon", 5.0),
        (429, "-5", 5.0),
        (429, "\u0661\u0662\u0660", 5.0),
        (429, "", 5.0),
    ],
)
def test_retry_after_counts_within_bounds(status: int, retry_after: str, seconds: float) -> None:
    attempted = Attempted(1, status, retry_after=retry_after)
    assert decide(attempted, failing_since=None, now=NOW, jitter=0.0).delay_seconds == seconds


def test_a_date_is_read_against_the_given_clock() -> None:
    assert read_retry_after("Tue, 14 Nov 2023 22:13:50 GMT", NOW) == 30.0


@given(
    st.one_of(
        st.text(max_size=80),
        st.text(alphabet="0123456789:-+., TueNovGMT", max_size=60),
        st.integers(0, 10**40).map(lambda year: f"Tue, 14 Nov {year} 22:13:20 GMT"),
        st.integers(0, 10**30).map(lambda zone: f"Tue, 14 Nov 2023 22:13:20 +{zone}"),
    )
)
def test_any_wish_is_a_wait_of_at_most_a_day(text: str) -> None:
    assert 0 <= read_retry_after(text, NOW) <= 86_400


@pytest.mark.parametrize(("attempt", "jitter"), [(0, 0.5), (1, -0.1), (1, 1.1), (1, float("nan"))])
def test_arguments_out_of_range_are_refused(attempt: int, jitter: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        decide(Attempted(attempt, 500), failing_since=None, now=NOW, jitter=jitter)
