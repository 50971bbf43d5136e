"""Event streams that wait share one look at the database, and are woken by their own studies' events alone."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import pytest
from sqlalchemy import event, func, select

from service.api.news import News
from service.db.models import JobEventRow
from service.db.session import Database

#: So long that only a wait that hangs gets there.
LONG = 60.0


def newest_event(api: Any, study_id: str) -> int:
    with api.database.read() as session:
        found = session.scalar(select(func.max(JobEventRow.id)).where(JobEventRow.study_id == study_id))
    assert found is not None
    return int(found)


def test_an_event_wakes_those_who_wait_for_its_study(api: Any) -> None:
    ids = [api.study()["id"] for _ in range(3)]
    seen = {study_id: newest_event(api, study_id) for study_id in ids}

    async def follow() -> tuple[str, list[bool]]:
        news = News(api.database, look_seconds=0.01)
        waits = {
            asyncio.create_task(news.wait(study_id, seen[study_id], LONG)): study_id
            for study_id in ids
            for _ in range(2)
        }
        await asyncio.to_thread(api.acquire)
        done, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in left:
            each.cancel()
        (woken,) = {waits[each] for each in done}
        return woken, [each.result() for each in done]

    woken, results = asyncio.run(follow())
    assert newest_event(api, woken) > seen[woken] and results == [True, True]
    assert [newest_event(api, each) == seen[each] for each in ids].count(True) == 2


def test_many_who_wait_ask_as_much_as_one(api: Any) -> None:
    ids = [api.study()["id"] for _ in range(3)]
    seen = {study_id: newest_event(api, study_id) for study_id in ids}
    asked: list[str] = []
    glancing = api.database._glancer
    event.listen(glancing, "before_cursor_execute", lambda *given: asked.append(given[2]))

    async def follow() -> list[bool]:
        news = News(api.database, look_seconds=0.2)
        return await asyncio.gather(*(news.wait(each, seen[each], 1.0) for each in ids * 20))

    assert asyncio.run(follow()) == [False] * 60
    looks = [statement for statement in asked if "max(" in statement]
    assert 1 <= len(looks) <= 6, "not one for each of 60"


def test_nothing_is_asked_when_nobody_waits(api: Any) -> None:
    study_id = api.study()["id"]

    async def follow() -> bool:
        news = News(api.database, look_seconds=0.01)
        assert await news.wait(study_id, 0, LONG)
        assert news._looking is not None
        await asyncio.wait_for(news._looking, LONG)
        # And the next one who waits is looked for again.
        return await news.wait(study_id, 0, LONG)

    assert asyncio.run(follow())


def test_a_database_that_is_away_sends_each_to_its_own_read(tmp_path: Any) -> None:
    empty = Database(f"sqlite:///{tmp_path / 'without-tables.db'}")
    assert asyncio.run(News(empty, look_seconds=0.01).wait("s", 7, LONG))
    empty.close()


class Refusing(Database):
    """Its looks end with an error that is not the database's own."""

    def glance(self, read: object) -> NoReturn:
        raise RuntimeError("can't start new thread")


def test_any_error_of_a_look_sends_each_to_its_own_read(tmp_path: Any) -> None:
    refusing = Refusing(f"sqlite:///{tmp_path / 'any.db'}")
    assert asyncio.run(News(refusing, look_seconds=0.01).wait("s", 7, LONG))
    refusing.close()


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_a_wait_ends_in_time(api: Any, seconds: float) -> None:
    study_id = api.study()["id"]
    seen = newest_event(api, study_id)
    assert asyncio.run(News(api.database).wait(study_id, seen, seconds)) is False
