"""Extending a study: its job, its versions, its stream and its refusals, on both databases."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from service.db.models import JobRow
from service.settings import Settings
from service.states import JobState
from service.studies.extend import MAX_CONFIRMED
from tuner.evidence import Verdict
from tuner.search.confirmation import MAX_LEADERS
from tuner.spec import OFF_SETTING

OPEN = {"verdict": Verdict.INCONCLUSIVE, "more_seeds": 5}


def done(api: Any, submission: dict[str, Any] | None = None, **changes: Any) -> str:
    """Id of a study that has ended; ``changes`` are its recommendation's."""
    study_id = str(api.study(**submission or {})["id"])
    api.succeed(study_id, **changes)
    return study_id


def num_jobs(api: Any, study_id: str) -> int:
    with api.database.read() as session:
        return int(session.scalar(select(func.count()).select_from(JobRow).filter_by(study_id=study_id)))


def test_an_extended_study_runs_again_to_the_next_version(api: Any) -> None:
    study_id = done(api)
    response = api.extend(study_id, 4)
    study = response.json()
    assert (response.status_code, response.headers["location"]) == (202, f"/v1/studies/{study_id}")
    assert (study["state"], study["done"], study["extensions"]) == ("queued", False, [4])
    first = study["result"]
    assert first["version"] == 1
    lease = api.acquire()
    assert lease.study_id == study_id and lease.payload == {"extension": 4}
    second = api.recommend(study_id, reason="settled now")
    api.queue.finish(lease, JobState.SUCCEEDED)
    path = f"/v1/studies/{study_id}"
    after = api.http.get(path).json()
    assert (after["state"], after["num_trials_ended"], after["result"]["id"]) == ("succeeded", 4, second)
    assert (after["result"]["version"], after["result"]["reason"]) == (2, "settled now")
    assert api.http.get(f"{path}/recommendation").json() == after["result"]
    assert api.http.get(f"{path}/recommendation", params={"version": 1}).json() == first
    assert api.http.get(f"/v1/recommendations/{first['id']}").json() == first
    absent = api.http.get(f"{path}/recommendation", params={"version": 3})
    assert (absent.status_code, absent.json()["code"]) == (404, "recommendation_not_found")
    assert "newest is 2" in absent.json()["detail"]
    newest = api.http.get("/v1/recommendations", params={"workload": "charlm-rnn"}).json()
    assert newest["recommendation"]["id"] == second
    assert api.extend(study_id, 3).json()["extensions"] == [4, 3]


def test_what_the_recommendation_asks_for_is_the_default(api: Any) -> None:
    assert api.extend(done(api, **OPEN)).json()["extensions"] == [5]
    api.acquire()
    # 6 are the study's own, and 64 the most.
    assert api.extend(done(api, **OPEN | {"more_seeds": 58})).json()["extensions"] == [58]


def test_more_than_there_is_room_for_is_not_cut_silently(api: Any) -> None:
    study_id = done(api, **OPEN | {"more_seeds": 59})
    response = api.extend(study_id)
    assert (response.status_code, response.json()["code"]) == (409, "not_settleable")
    for words in ("about 59 further fresh seeds", "of the 64", "at most 58 more", "give num_seeds"):
        assert words in response.json()["detail"]
    assert api.extend(study_id, 58).json()["extensions"] == [58]


def test_a_repeated_request_extends_once(api: Any) -> None:
    study_id = done(api)
    first, again = api.extend(study_id, 4, key="k"), api.extend(study_id, 4, key="k")
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["idempotency-replayed"] == "true" and again.json() == first.json()
    other = api.extend(study_id, 5, key="k")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert num_jobs(api, study_id) == 2


@pytest.mark.parametrize("same_key", [True, False])
def test_of_extensions_at_once_one_wins(api: Any, same_key: bool) -> None:
    study_id = done(api)
    start = threading.Barrier(6)

    def extend(number: int) -> tuple[int, str]:
        start.wait()
        response = api.extend(study_id, 4, key="k" if same_key else f"k{number}")
        return response.status_code, response.json().get("code", "")

    with ThreadPoolExecutor(6) as pool:
        answers = sorted(pool.map(extend, range(6)))
    other = (200, "") if same_key else (409, "study_not_done")
    assert answers == sorted([(202, ""), *[other] * 5])
    assert num_jobs(api, study_id) == 2
    assert api.http.get(f"/v1/studies/{study_id}").json()["extensions"] == [4]


def test_a_study_that_runs_is_not_extended(api: Any) -> None:
    study_id = api.study()["id"]
    for _ in range(2):
        response = api.extend(study_id, 4)
        assert (response.status_code, response.json()["code"]) == (409, "study_not_done")
        assert "wait until it has ended" in response.json()["detail"]
        if num_jobs(api, study_id) == 1 and api.queue._finds(api.queue._sql.find_ready, kind="study"):
            api.acquire()


def test_without_a_comparison_there_is_nothing_to_extend(api: Any) -> None:
    cancelled, failed = api.study()["id"], api.study()["id"]
    api.http.post(f"/v1/studies/{cancelled}/cancel")
    api.queue.finish(api.acquire(), JobState.FAILED, "broken")
    for study_id in (cancelled, failed):
        response = api.extend(study_id, 4)
        assert (response.status_code, response.json()["code"]) == (409, "nothing_to_extend")
        assert "submit a new study" in response.json()["detail"]


def test_without_a_best_setting_there_is_nothing_to_compare(api: Any) -> None:
    study_id = done(api, **OPEN | {"best": None, "setting": OFF_SETTING, "interval": None, "value": None})
    for num_seeds in (4, None):
        response = api.extend(study_id, num_seeds)
        assert (response.status_code, response.json()["code"]) == (409, "nothing_to_extend")
        assert "no clip setting that could be compared" in response.json()["detail"]


def test_a_settled_study_is_extended_only_on_purpose(api: Any) -> None:
    study_id = done(api)
    response = api.extend(study_id)
    assert (response.status_code, response.json()["code"]) == (409, "already_settled")
    assert "clip" in response.json()["detail"] and "give num_seeds" in response.json()["detail"]
    assert api.extend(study_id, 2).status_code == 202


def test_a_study_that_no_number_settles_says_so(api: Any) -> None:
    response = api.extend(done(api, **OPEN | {"more_seeds": None}))
    assert (response.status_code, response.json()["code"]) == (409, "not_settleable")


def test_seeds_are_bounded_over_all_extensions(api: Any) -> None:
    study_id = done(api, {"num_confirm_seeds": 4})
    response = api.extend(study_id, 61)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "too_many_seeds")
    assert "at most 60 more" in problem["detail"] and problem["errors"][0]["pointer"] == "/num_seeds"
    assert api.extend(study_id, 60).status_code == 202
    api.succeed(study_id)
    assert "none is left" in api.extend(study_id, 1).json()["detail"]


def test_a_first_fresh_seed_does_not_come_alone(api: Any) -> None:
    study_id = done(api, {"num_confirm_seeds": 0})
    assert api.extend(study_id, 1).json()["code"] == "too_few_seeds"
    assert api.extend(study_id, 2).status_code == 202


def test_the_budget_holds_for_extensions_too(api: Any) -> None:
    study_id = done(api, {"num_steps": 10_000})
    # (4 x 2 + 8 x fresh seeds) x 10,000 <= 1,000,000: 11 fresh seeds, of which 6 are the study's own.
    response = api.extend(study_id, 6)
    assert (response.status_code, response.json()["code"]) == (422, "budget_exceeded")
    assert "CLIPTUNE_MAX_LANE_STEPS" in response.json()["detail"]
    assert api.extend(study_id, 5).status_code == 202


def test_the_budget_counts_whatever_may_be_confirmed() -> None:
    assert MAX_CONFIRMED == 2 + 2 * MAX_LEADERS
    assert f"{MAX_CONFIRMED} x fresh seeds" in str(Settings.model_fields["max_lane_steps"].description)


def test_another_tenants_study_is_not_there(api: Any) -> None:
    study_id = done(api)
    other = api.with_key(api.new_key(tenant_id="other"))
    headers = {"Idempotency-Key": "k"}
    response = other.post(f"/v1/studies/{study_id}/extend", json={"num_seeds": 4}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (404, "study_not_found")


def cancel(api: Any, study_id: str) -> None:
    api.http.post(f"/v1/studies/{study_id}/cancel")


def fail(api: Any, study_id: str) -> None:
    lease = api.acquire()
    assert lease.study_id == study_id
    api.queue.finish(lease, JobState.FAILED, "broken")


@pytest.mark.parametrize(
    ("end", "state", "words"),
    [
        (cancel, "cancelled", ["the extension was cancelled"]),
        (fail, "failed", ["the extension failed", "broken"]),
    ],
)
def test_an_extension_without_an_end_leaves_the_version_before(
    api: Any, end: Callable[[Any, str], None], state: str, words: list[str]
) -> None:
    study_id = done(api)
    api.extend(study_id, 4)
    end(api, study_id)
    study = api.http.get(f"/v1/studies/{study_id}").json()
    assert (study["state"], study["error"]["code"]) == (state, f"study_{state}")
    assert study["result"]["version"] == 1
    for each in (*words, "version 1 of the recommendation stands", "can be extended again"):
        assert each in study["error"]["detail"]
    # Nothing more is asked for: it goes on where it stopped, settled or not.
    again = api.extend(study_id).json()
    assert (again["state"], again["error"], again["extensions"]) == ("queued", None, [4])
    end(api, study_id)
    assert api.extend(study_id, 3).json()["extensions"] == [4, 3]
    api.succeed(study_id)
    assert api.http.get(f"/v1/studies/{study_id}").json()["result"]["version"] == 2
    assert api.extend(study_id).json()["code"] == "already_settled"


def test_a_cancelled_extension_that_took_all_seeds_goes_on(api: Any) -> None:
    study_id = done(api)
    api.extend(study_id, 58)
    cancel(api, study_id)
    assert api.extend(study_id, 1).json()["code"] == "too_many_seeds"
    assert api.extend(study_id).json()["extensions"] == [58]


def events(api: Any, study_id: str, after: int = 0) -> list[dict[str, Any]]:
    response = api.http.get(f"/v1/studies/{study_id}/events", params={"after": after})
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


def test_the_stream_goes_on_past_the_end_before(api: Any) -> None:
    study_id = done(api)
    (*_, end) = events(api, study_id)
    assert (end["kind"], end["superseded"]) == ("succeeded", False)
    assert events(api, study_id, end["id"]) == []
    api.extend(study_id, 4)
    finishing = threading.Timer(0.5, api.succeed, [study_id])
    finishing.start()
    told = events(api, study_id)
    finishing.join()
    assert [(each["kind"], each["superseded"]) for each in told] == [
        ("queued", False),
        ("acquired", False),
        ("succeeded", True),
        ("queued", False),
        ("acquired", False),
        ("succeeded", False),
    ]
    assert [each["id"] for each in events(api, study_id, end["id"])] == [each["id"] for each in told[3:]]
