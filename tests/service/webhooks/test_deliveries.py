"""The outbox under several senders, lost senders, rotations and time: at least once, never twice at the same time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import event, select, update
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


def test_a_backlog_waits_for_its_turn(bench: Bench) -> None:
    """However long it has been ready, and however slow its receiver is."""
    slow, other = bench.webhook(), bench.webhook()
    for _ in range(3):
        bench.queue(slow)
    bench.settle(bench.take(), None, "no answer within 5 s")
    bench.now += 5000
    for _ in range(2):
        bench.queue(other)
    assert [bench.take().webhook_id for _ in range(5)] == [other, slow, other, slow, slow]


def test_a_look_into_the_outbox_skips_what_can_not_be_sent(sqlite_database: Database) -> None:
    """What waits for a webhook that is busy or off is not read: each webhook costs a look into the index."""
    found: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        del connection, rest
        if "cliptune_deliveries" in statement and "EXPLAIN" not in statement:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            found.extend(str(step) for step in cursor.fetchall() if "cliptune_deliveries" in str(step))

    bench = Bench(sqlite_database)
    bench.queue(bench.webhook())
    event.listen(sqlite_database.engine, "before_cursor_execute", note)
    bench.take("another")
    event.remove(sqlite_database.engine, "before_cursor_execute", note)
    index = "ix_cliptune_deliveries_pending (webhook_id=? AND run_after<?)"
    assert [step for step in found if index in step], found
    assert not [step for step in found if "SCAN" in step], found


@pytest.mark.parametrize("status", [410, 500])
def test_a_webhook_is_switched_off_and_on_again(bench: Bench, status: int) -> None:
    webhook_id = bench.webhook()
    delivery_id = bench.queue(webhook_id)
    if status == 500:
        used_up = bench.queue(webhook_id)
        with bench.database.write() as session:
            session.get_one(DeliveryRow, used_up).attempt = MAX_ATTEMPTS - 1
            session.get_one(WebhookRow, webhook_id).failing_since = bench.now - DISABLE_AFTER_MS
    while (held := bench.deliveries.acquire()) is not None:
        bench.settle(held, status)
    bench.now += 1
    off = bench.look(webhook_id)
    assert off.disabled_at.timestamp() * 1000 == bench.now - 1
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


def test_many_old_deliveries_are_deleted_a_few_at_a_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transaction for 100,000 would take longer than PostgreSQL lets it."""
    monkeypatch.setattr("service.webhooks.deliveries.SWEEP_BATCH", 2)
    webhook_id = bench.webhook()
    for _ in range(5):
        bench.queue(webhook_id)
    bench.now += KEEP_MS + 1
    commits: list[Any] = []
    event.listen(bench.database.engine, "commit", commits.append)
    assert bench.deliveries.sweep() == 5
    assert len(commits) == 1 + 3


@pytest.mark.postgres
def test_a_sweep_waits_for_no_webhook_that_keeps_its_secrets(postgres_database: Database) -> None:
    bench = Bench(postgres_database)
    kept, rotated = bench.webhook(), bench.webhook()
    with bench.database.write() as session:
        registry.rotate(session, tenant_id="t", webhook_id=rotated, now=bench.now)
    bench.now += ROTATION_MS
    with bench.database.write() as session:
        session.get_one(WebhookRow, kept, with_for_update=True)
        bench.deliveries.sweep()
    with bench.database.read() as session:
        assert len(session.get_one(WebhookRow, rotated).secrets) == 1


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
