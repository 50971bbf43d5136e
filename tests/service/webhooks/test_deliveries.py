"""The outbox under several senders, lost senders, rotations and time: at least once, never twice at the same time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from service.db.models import DeliveryRow, WebhookRow
from service.db.session import Database
from service.errors import NotFoundError
from service.schemas import DeliveryState
from service.webhooks import registry
from service.webhooks.deliveries import KEEP_MS, LEASE_MS, Deliveries, Held
from service.webhooks.outbox import record_test
from service.webhooks.policy import DELAYS_SECONDS, DISABLE_AFTER_MS, MAX_ATTEMPTS, Attempted
from service.webhooks.registry import ROTATION_MS

START_MS = 1_000_000_000_000


@dataclass
class Bench:
    """An outbox whose clock the test moves."""

    database: Database
    now: int = START_MS
    deliveries: Deliveries = field(init=False)

    def __post_init__(self) -> None:
        self.deliveries = Deliveries(self.database, now=lambda: self.now)

    def webhook(self, tenant_id: str = "t") -> str:
        with self.database.write() as session:
            url = "https://hooks.test/"
            return registry.create(session, tenant_id=tenant_id, url=url, now=self.now).id

    def queue(self, webhook_id: str) -> str:
        with self.database.write() as session:
            return record_test(session, webhook_id, self.now)

    def take(self, *busy: str) -> Held:
        held = self.deliveries.acquire(busy)
        assert held is not None
        return held

    def settle(self, held: Held, status: int | None = 204, error: str = "") -> Any:
        return self.deliveries.settle(held, Attempted(held.attempt, status, error), jitter=0.0)

    def delivery(self, delivery_id: str) -> Any:
        with self.database.read() as session:
            return registry.get_delivery(session, delivery_id)

    def look(self, webhook_id: str) -> Any:
        with self.database.read() as session:
            return registry.get(session, tenant_id="t", webhook_id=webhook_id, now=self.now)


@pytest.fixture
def bench(database: Database) -> Bench:
    return Bench(database)


def test_a_delivery_is_taken_once_and_delivered(bench: Bench) -> None:
    webhook_id = bench.webhook()
    delivery_id = bench.queue(webhook_id)
    held = bench.take()
    assert (held.delivery_id, held.webhook_id, held.attempt, held.taken_at) == (
        delivery_id,
        webhook_id,
        1,
        START_MS,
    )
    assert bench.deliveries.acquire() is None
    bench.now += 1000
    assert bench.settle(held).state is DeliveryState.DELIVERED
    found = bench.delivery(delivery_id)
    assert (found.state, found.attempt, found.last_status, found.last_error) == ("delivered", 1, 204, None)
    assert found.delivered_at.timestamp() * 1000 == START_MS + 1000 and found.next_attempt_at is None
    bench.now += 10 * LEASE_MS
    assert bench.deliveries.acquire() is None


def test_a_failure_waits_for_its_next_attempt(bench: Bench) -> None:
    webhook_id = bench.webhook()
    delivery_id = bench.queue(webhook_id)
    bench.settle(bench.take(), None, "no answer within 5 s")
    found = bench.delivery(delivery_id)
    assert (found.state, found.last_status, found.last_error) == ("pending", None, "no answer within 5 s")
    assert found.next_attempt_at.timestamp() * 1000 == START_MS + 5000
    assert bench.look(webhook_id).failing_since is not None
    bench.now += 4999
    assert bench.deliveries.acquire() is None
    bench.now += 1
    held = bench.take()
    assert (held.attempt, held.delivery_id) == (2, delivery_id)
    bench.settle(held, 204)
    assert bench.look(webhook_id).failing_since is None


def test_ten_failures_are_the_end(bench: Bench) -> None:
    delivery_id = bench.queue(bench.webhook())
    for delay in (*DELAYS_SECONDS, 0):
        bench.settle(bench.take(), 500, "the receiver answered 500")
        bench.now += delay * 1000
    found = bench.delivery(delivery_id)
    assert (found.state, found.attempt, found.last_status) == ("failed", MAX_ATTEMPTS, 500)
    assert bench.deliveries.acquire() is None


def test_a_sender_that_died_leaves_it_to_the_next_one(bench: Bench) -> None:
    """Between sending and writing: it is sent again, and what the first one writes late does not count."""
    delivery_id = bench.queue(bench.webhook())
    lost = bench.take()
    bench.now += LEASE_MS - 1
    assert bench.deliveries.acquire() is None
    bench.now += 1
    second = bench.take()
    assert (second.delivery_id, second.attempt) == (delivery_id, 2)
    assert second.owner != lost.owner and second.body == lost.body
    assert bench.settle(lost) is None
    assert bench.delivery(delivery_id).state is DeliveryState.PENDING
    assert bench.settle(second).state is DeliveryState.DELIVERED
    assert bench.settle(second) is None


def test_two_senders_never_take_the_same_attempt(bench: Bench) -> None:
    webhooks = [bench.webhook() for _ in range(4)]
    ids = {bench.queue(each) for each in webhooks * 5}
    taken: list[str] = []
    lock, start = threading.Lock(), threading.Barrier(4)

    def drain() -> None:
        start.wait(60)
        while (held := bench.deliveries.acquire()) is not None:
            with lock:
                taken.append(held.delivery_id)
            bench.settle(held)

    threads = [threading.Thread(target=drain) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(120)
    # A sender that found every ready row locked by others stops early; what is left is not lost.
    while (held := bench.deliveries.acquire()) is not None:
        taken.append(held.delivery_id)
    assert sorted(taken) == sorted(ids)


def test_the_longest_ready_comes_first_and_busy_webhooks_wait(bench: Bench) -> None:
    one, other = bench.webhook(), bench.webhook()
    first = bench.queue(one)
    bench.now += 1
    second = bench.queue(other)
    assert bench.take(one).delivery_id == second
    assert bench.deliveries.acquire([one]) is None
    assert bench.take(other).delivery_id == first


@pytest.mark.parametrize("status", [410, 500])
def test_a_webhook_is_switched_off_and_on_again(bench: Bench, status: int) -> None:
    webhook_id = bench.webhook()
    if status == 500:
        bench.queue(webhook_id)
        bench.settle(bench.take(), 500)
        bench.now += DISABLE_AFTER_MS
    delivery_id = bench.queue(webhook_id)
    while (held := bench.deliveries.acquire()) is not None:
        bench.settle(held, status)
    off = bench.look(webhook_id)
    assert off.disabled_at.timestamp() * 1000 == bench.now
    assert off.disabled_reason in ("the receiver answered 410 Gone", "every attempt failed for 5 days")
    bench.now += 86_400_000
    assert bench.deliveries.acquire() is None
    with bench.database.write() as session:
        on = registry.enable(session, tenant_id="t", webhook_id=webhook_id, now=bench.now)
    assert (on.disabled_at, on.disabled_reason, on.failing_since) == (None, None, None)
    while (held := bench.deliveries.acquire()) is not None:
        assert bench.settle(held).state is DeliveryState.DELIVERED
    assert bench.delivery(delivery_id).state is DeliveryState.DELIVERED


def test_enabling_one_that_is_on_hurries_nothing(bench: Bench) -> None:
    webhook_id = bench.webhook()
    bench.queue(webhook_id)
    bench.settle(bench.take(), 500)
    with bench.database.write() as session:
        registry.enable(session, tenant_id="t", webhook_id=webhook_id, now=bench.now)
    assert bench.deliveries.acquire() is None
    assert bench.look(webhook_id).failing_since is not None


def test_a_rotation_signs_with_both_for_a_day(bench: Bench) -> None:
    webhook_id = bench.webhook()
    bench.queue(webhook_id)
    (old,) = bench.take().secrets
    with bench.database.write() as session:
        rotated = registry.rotate(session, tenant_id="t", webhook_id=webhook_id, now=bench.now)
    assert rotated.num_secrets == 2 and rotated.secret != old
    bench.queue(webhook_id)
    assert bench.take(*[]).secrets == (rotated.secret, old)
    bench.now += ROTATION_MS - 1
    bench.queue(webhook_id)
    while (held := bench.deliveries.acquire()) is not None:
        assert held.secrets == (rotated.secret, old)
        bench.settle(held)
    bench.now += 1
    bench.queue(webhook_id)
    assert bench.take().secrets == (rotated.secret,)
    assert bench.look(webhook_id).num_secrets == 1
    bench.deliveries.sweep()
    with bench.database.read() as session:
        kept = session.scalars(select(WebhookRow.secrets)).one()
    assert [each["secret"] for each in kept] == [rotated.secret]


def test_rotations_in_a_row_keep_a_few_secrets(bench: Bench) -> None:
    webhook_id = bench.webhook()
    for expected in (2, 3, 4, 5, 5):
        with bench.database.write() as session:
            rotated = registry.rotate(session, tenant_id="t", webhook_id=webhook_id, now=bench.now)
        assert rotated.num_secrets == expected


def test_old_deliveries_are_deleted(bench: Bench) -> None:
    webhook_id = bench.webhook()
    old = bench.queue(webhook_id)
    bench.settle(bench.take())
    bench.now += KEEP_MS
    young = bench.queue(webhook_id)
    assert bench.deliveries.sweep() == 0
    bench.now += 1
    assert bench.deliveries.sweep() == 1
    with bench.database.read() as session:
        assert list(session.scalars(select(DeliveryRow.id))) == [young] != [old]


def test_a_last_attempt_that_nobody_settled_is_given_up(bench: Bench) -> None:
    delivery_id = bench.queue(bench.webhook())
    with bench.database.write() as session:
        session.execute(update(DeliveryRow).values(attempt=MAX_ATTEMPTS - 1))
    bench.take()
    bench.deliveries.sweep()
    assert bench.delivery(delivery_id).state is DeliveryState.PENDING
    bench.now += LEASE_MS
    assert bench.deliveries.acquire() is None
    bench.deliveries.sweep()
    found = bench.delivery(delivery_id)
    assert (found.state, found.attempt) == ("failed", MAX_ATTEMPTS)
    assert found.last_error == "the sender was lost during the last attempt"


def test_a_webhook_deleted_while_it_is_sent_to_is_gone(bench: Bench) -> None:
    webhook_id = bench.webhook()
    bench.queue(webhook_id)
    held = bench.take()
    with bench.database.write() as session:
        registry.remove(session, tenant_id="t", webhook_id=webhook_id)
    assert bench.settle(held) is None
    with bench.database.read() as session:
        assert list(session.scalars(select(DeliveryRow.id))) == []
    with pytest.raises(NotFoundError):
        bench.look(webhook_id)


def test_the_database_holds_the_invariants(bench: Bench) -> None:
    bench.queue(bench.webhook())
    for wrong in ({"state": "sent"}, {"state": "failed", "owner": "x"}):
        with pytest.raises(IntegrityError), bench.database.write() as session:
            session.execute(update(DeliveryRow).values(**wrong))


def test_pages_of_deliveries_meet_without_gap(bench: Bench) -> None:
    webhook_id = bench.webhook()
    ids = []
    for turn in range(5):
        # Two in the same millisecond: the id breaks the tie.
        bench.now += turn % 2
        ids.append(bench.queue(webhook_id))
    seen: list[str] = []
    before = None
    while True:
        with bench.database.read() as session:
            found, before = registry.list_deliveries(session, webhook_id=webhook_id, limit=2, before=before)
        seen += [each.id for each in found]
        if before is None:
            break
    assert len(seen) == 5 and set(seen) == set(ids)
    assert seen[0] in ids[-2:]
