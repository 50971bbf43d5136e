"""The query that training jobs ask, on both databases."""

from __future__ import annotations

from typing import Any

from service.schemas import RecommendationAnswer


def test_the_newest_of_the_same_question_is_an_exact_match(api: Any) -> None:
    old, new = api.study(), api.study()
    api.recommend(old["id"])
    newest = api.recommend(new["id"])
    response = api.http.get(
        "/v1/recommendations", params={"workload": "charlm-rnn", "fingerprint": new["fingerprint"]}
    )
    answer = RecommendationAnswer.model_validate_json(response.content)
    assert answer.match == "exact" and answer.recommendation is not None
    assert answer.recommendation.id == newest
    assert str(answer.recommendation.setting) == "global_norm:0.42"
    assert answer.recommendation.snippets["pytorch"].endswith("0.42)")
    assert answer.recommendation.provenance == {"torch": "2.13.0", "device": "cpu", "extensions": []}
    assert response.headers["cache-control"] == "private, max-age=5"


def test_other_parameters_are_a_match_of_the_workload_alone(api: Any) -> None:
    api.recommend(api.study()["id"])
    answer = api.http.get(
        "/v1/recommendations", params={"workload": "charlm-rnn", "fingerprint": "0" * 16}
    ).json()
    assert answer["match"] == "workload" and "other parameters" in answer["reason"]
    assert answer["recommendation"]["verdict"] == "clip"


def test_a_fingerprint_is_enough(api: Any) -> None:
    api.recommend(api.study(workload="charlm-rnn", parameters={"hidden": 8})["id"])
    wanted = api.study()
    newest = [api.recommend(wanted["id"]) for _ in range(2)][-1]
    api.recommend(api.study(parameters={"hidden": 16})["id"])
    for more in ({}, {"optimizer": "sgd", "median_norm": 0.5, "num_parameters": 10}):
        params = {"fingerprint": wanted["fingerprint"]} | more
        answer = api.http.get("/v1/recommendations", params=params).json()
        assert (answer["match"], answer["recommendation"]["id"]) == ("exact", newest)
    other = api.with_key(api.new_key(tenant_id="other"))
    for http, fingerprint in ((api.http, "0" * 16), (other, wanted["fingerprint"])):
        absent = http.get("/v1/recommendations", params={"fingerprint": fingerprint}).json()
        assert (absent["match"], absent["recommendation"]) == ("none", None)
        assert f"no study with fingerprint {fingerprint}" in absent["reason"]
    elsewhere = {"fingerprint": wanted["fingerprint"], "workload": "other"}
    assert api.http.get("/v1/recommendations", params=elsewhere).json()["match"] == "none"


def test_features_without_an_optimizer_make_no_exact_match(api: Any) -> None:
    api.recommend(api.study()["id"])
    answer = api.http.get(
        "/v1/recommendations", params={"workload": "charlm-rnn", "learning_rate": 0.1}
    ).json()
    assert answer["match"] == "workload" and answer["recommendation"]["verdict"] == "clip"
    assert "perhaps with other parameters" in answer["reason"] and "only with optimizer" in answer["reason"]


def test_nothing_stored_says_what_to_do(api: Any) -> None:
    answer = api.http.get("/v1/recommendations", params={"workload": "charlm-rnn"}).json()
    assert answer == {"match": "none", "recommendation": None, "reason": answer["reason"], "neighbours": []}
    assert "POST /v1/studies" in answer["reason"]


def test_an_unchanged_answer_is_not_sent_again(api: Any) -> None:
    api.recommend(api.study()["id"])
    first = api.http.get("/v1/recommendations", params={"workload": "charlm-rnn"})
    again = api.http.get(
        "/v1/recommendations",
        params={"workload": "charlm-rnn"},
        headers={"If-None-Match": f'"x", W/{first.headers["etag"]}'},
    )
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "private, max-age=5"


def test_the_query_reads_one_index(api: Any) -> None:
    """Latency must not grow with what is stored: the plan names the index and no sort."""
    from service.recommendations.answers import _BY_BOTH, _BY_FINGERPRINT, _BY_WORKLOAD

    if api.database.dialect != "sqlite":
        return
    key = {"tenant_id": "t", "workload": "w", "fingerprint": "f"}
    with api.database.read() as session:
        for statement, index in (
            (_BY_WORKLOAD, "workload"),
            (_BY_FINGERPRINT, "fingerprint"),
            (_BY_BOTH, "fingerprint"),
        ):
            sql = str(statement.compile(api.database.engine)).replace("\n", " ")
            names = [key[name] for name in statement.compile(api.database.engine).positiontup if name in key]
            plan = session.connection().exec_driver_sql(
                f"EXPLAIN QUERY PLAN {sql}", (*names, 1, 0)[: sql.count("?")]
            )
            text = " ".join(str(row) for row in plan)
            assert f"ix_cliptune_recommendations_{index}" in text and "TEMP B-TREE" not in text
