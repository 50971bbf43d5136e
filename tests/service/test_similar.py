"""Answers of similar studies: the distance, what is carried over, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from service import recommendations
from service.recommendations.carrying import carry_over
from service.recommendations.distance import UNKNOWN, Subject, compare
from service.recommendations.fingerprint import study_fingerprint
from tuner.evidence import Features, NormSketch, Reference, Verdict
from tuner.spec import OFF_SETTING, RATE_SCALES, ClipSetting, StudySpec, study_spec


def reference(median_norm: float = 0.24, **changes: Any) -> Reference:
    """What a probe measured; ``changes`` are features."""
    features: dict[str, Any] = {
        "model_signature": "0123456789abcdef",
        "num_parameters": 10_000,
        "num_tensors": 6,
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "batch_size": 32,
        "precision": "fp32",
    }
    return Reference(
        l2_norm=NormSketch(median=median_norm, q90=0.3, q99=0.47, max=1.31),
        max_abs=NormSketch(median=median_norm / 10, q90=0.03, q99=0.047, max=0.131),
        num_batches=64,
        features=Features(**features | changes),
    )


ASKED: dict[str, Any] = {
    "optimizer": "sgd",
    "num_parameters": 10_000,
    "learning_rate": 1.0,
    "batch_size": 32,
    "precision": "fp32",
    "model_signature": "0123456789abcdef",
    "median_norm": 0.48,
}
HERE = Subject(**{name: value for name, value in ASKED.items() if name != "median_norm"})
SUBJECTS = st.builds(
    Subject,
    optimizer=st.just("sgd"),
    num_parameters=st.none() | st.integers(1, 10**12),
    learning_rate=st.none() | st.floats(1e-9, 1e3),
    batch_size=st.none() | st.integers(1, 10**6),
    precision=st.none() | st.sampled_from(["fp32", "bf16", "fp16"]),
    model_signature=st.none() | st.sampled_from(["0" * 16, "1" * 16]),
)


def there(**changes: Any) -> Subject:
    return Subject(**{name: getattr(HERE, name) for name in Subject.__dataclass_fields__} | changes)


@pytest.mark.parametrize(
    ("changes", "distance", "words", "quality"),
    [
        ({}, 0.0, (), "close"),
        # The same model under another name of its size: the signature decides.
        ({"num_parameters": 20_000}, 0.0, (), "close"),
        ({"learning_rate": 0.1}, 1.0, ("learning rate 0.1 there, 1 here",), "rough"),
        ({"batch_size": 320}, 0.5, ("batch size 320 there, 32 here",), "close"),
        ({"precision": "bf16"}, 0.25, ("precision bf16 there, fp32 here",), "close"),
        ({"precision": None}, UNKNOWN, ("precision not recorded there",), "close"),
        ({"learning_rate": 0.0}, UNKNOWN, ("learning rate not recorded there",), "close"),
        ({"model_signature": "f" * 16}, 0.25, ("another model",), "close"),
        (
            {"model_signature": None, "num_parameters": 1000},
            1.25,
            ("another model", "number of parameters 1000 there, 10000 here"),
            "rough",
        ),
        ({"learning_rate": 0.01}, 2.0, ("learning rate 0.01 there, 1 here",), None),
    ],
)
def test_the_distance_is_a_sum_of_told_terms(
    changes: dict[str, Any], distance: float, words: tuple[str, ...], quality: str | None
) -> None:
    found = compare(HERE, there(**changes))
    assert (found.distance, found.differences, found.quality) == (distance, words, quality)


@given(SUBJECTS, SUBJECTS)
def test_the_distance_is_symmetric_and_nothing_is_nearer_than_itself(one: Subject, other: Subject) -> None:
    forth, back = compare(one, other), compare(other, one)
    assert forth.distance == back.distance >= 0
    assert (forth.distance == 0) <= (forth.differences == ())
    assert compare(one, one).distance <= forth.distance


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_kappa_stays_what_it_was(threshold: float, median: float) -> None:
    carried = carry_over(
        ClipSetting(method="global_norm", threshold=threshold),
        (threshold / 2, threshold * 2),
        kappa=2.0,
        medians={"l2_norm": median},
    )
    assert carried is not None and carried.setting.threshold is not None and carried.interval is not None
    assert math.isclose(carried.setting.threshold, 2 * median, rel_tol=6e-3)
    assert math.isclose(carried.interval[0] * 4, carried.interval[1], rel_tol=2e-2)


def test_what_is_relative_to_no_known_norm_is_not_rescaled() -> None:
    percentile = ClipSetting.parse("autoclip:80")
    kept = carry_over(percentile, (70.0, 90.0), kappa=None, medians={})
    assert kept is not None and (kept.setting, kept.interval) == (percentile, (70.0, 90.0))
    off = carry_over(OFF_SETTING, None, kappa=None, medians={"l2_norm": 1.0})
    assert off is not None and off.setting.is_off
    value = ClipSetting.parse("value:0.1")
    assert carry_over(value, None, kappa=0.5, medians={"l2_norm": 1.0}) is None
    assert carry_over(value, None, kappa=None, medians={"max_abs": 1.0}) is None
    assert carry_over(value, None, kappa=0.5, medians={"max_abs": 0.0}) is None


@pytest.mark.parametrize(
    ("scale", "there", "here", "expected"),
    [
        (0.5, 0.1, 0.2, 0.25),
        (0.5, 0.3, 0.9, 0.167),
        (2.0, 1.0, 1.0, 2.0),
        # Nothing was tuned there: the rate here is left alone too.
        (1.0, 0.1, 0.2, 1.0),
        (1.0, None, None, 1.0),
        (0.5, None, 0.2, None),
        (0.5, 0.1, None, None),
        (0.5, 0.0, 0.2, None),
        (9000.0, 1.0, 0.1, RATE_SCALES[1]),
        (2e-4, 0.1, 1.0, RATE_SCALES[0]),
    ],
)
def test_a_tuned_rate_is_carried_over_as_a_rate(
    scale: float, there: float | None, here: float | None, expected: float | None
) -> None:
    for text in ("global_norm:0.5", "autoclip:80", "none"):
        setting = dataclasses.replace(ClipSetting.parse(text), learning_rate_scale=scale)
        found = carry_over(
            setting, None, kappa=2.0, medians={"l2_norm": 1.0}, rate_there=there, rate_here=here
        )
        assert (None if found is None else found.setting.learning_rate_scale) == expected


def test_the_fingerprint_tells_models_apart() -> None:
    spec = StudySpec(workload="w", parameters={"hidden": 8})
    seen = study_fingerprint(spec, reference().features)
    assert len(seen) == 16 and seen != spec.fingerprint
    assert seen == study_fingerprint(spec, reference(median_norm=9.0).features)
    assert seen != study_fingerprint(spec, reference(model_signature="f" * 16).features)


def ask(api: Any, **changes: Any) -> Any:
    params = {name: value for name, value in (ASKED | changes).items() if value is not None}
    return api.http.get("/v1/recommendations", params=params).json()


def store(api: Any, *, features: dict[str, Any] | None = None, **changes: Any) -> tuple[str, str]:
    """Ids of a study and of its recommendation."""
    study_id = api.study()["id"]
    found = api.recommend(study_id, reference=reference(**features or {}), **changes)
    return study_id, found


def test_a_similar_study_is_carried_over_by_kappa(api: Any) -> None:
    study_id, recommendation_id = store(api)
    answer = ask(api, batch_size=64)
    assert (answer["match"], answer["recommendation"]) == ("similar", None)
    (nearest,) = answer["neighbours"]
    assert (nearest["study_id"], nearest["recommendation_id"]) == (study_id, recommendation_id)
    # kappa 1.75 at the asked median norm of 0.48; 0.42 and its interval at one of 0.24.
    assert nearest["setting"]["threshold"] == 0.84 and nearest["interval"] == [0.5, 1.42]
    assert (nearest["quality"], nearest["kappa"]) == ("close", 1.75)
    assert nearest["differences"] == ["batch size 32 there, 64 here"]
    assert nearest["distance"] == pytest.approx(math.log10(2) / 2, abs=1e-6)
    assert "global_norm:0.84 is its setting" in answer["reason"] and "starting point" in answer["reason"]


def test_the_nearest_come_first_and_five_at_most(api: Any) -> None:
    for rate in (8.0, 1.0, 4.0, 2.0, 16.0, 1.5, 1000.0):
        store(api, features={"learning_rate": rate})
    found = ask(api)["neighbours"]
    assert len(found) == 5
    assert [each["distance"] for each in found] == sorted(each["distance"] for each in found)
    assert found[0]["distance"] == 0


@pytest.mark.parametrize(
    ("verdict", "words"),
    [(Verdict.NO_DIFFERENCE, "made no difference in 1"), (Verdict.DO_NOT_CLIP, "did harm in 1")],
)
def test_off_is_carried_over_as_off(api: Any, verdict: Verdict, words: str) -> None:
    store(api, verdict=verdict, setting=OFF_SETTING, interval=None)
    answer = ask(api)
    (nearest,) = answer["neighbours"]
    assert nearest["verdict"] == verdict and nearest["setting"]["method"] == "none"
    assert nearest["kappa"] is None and words in answer["reason"] and "train without it" in answer["reason"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"median_norm": None}, "give median_norm"),
        ({"optimizer": "adam"}, "no study trained with adam, and thresholds of another optimizer (sgd)"),
        ({"learning_rate": 1e-4}, "at distance 4.00"),
        ({"num_parameters": 10**12, "model_signature": None}, "no settled study with sgd is near this size"),
    ],
)
def test_what_does_not_carry_over_is_refused_with_the_reason(
    api: Any, changes: dict[str, Any], words: str
) -> None:
    store(api)
    answer = ask(api, **changes)
    assert (answer["match"], answer["neighbours"]) == ("none", [])
    assert words in answer["reason"], answer["reason"]


def test_a_threshold_of_another_quantity_is_refused(api: Any) -> None:
    store(api, setting=ClipSetting.parse("value:0.1"))
    assert "recommends value, whose threshold is not relative" in ask(api)["reason"]


def test_a_tuned_rate_is_a_factor_on_the_rate_that_was_asked_about(api: Any) -> None:
    store(api, setting=ClipSetting.parse("global_norm:0.42@0.5"))
    (nearest,) = ask(api, learning_rate=2.0)["neighbours"]
    assert nearest["setting"] == {"method": "global_norm", "threshold": 0.84, "learning_rate_scale": 0.25}
    refused = ask(api, learning_rate=None)
    assert refused["match"] == "none" and refused["neighbours"] == []
    assert "0.5 times its learning rate" in refused["reason"] and "give learning_rate" in refused["reason"]


def test_a_tuned_rate_of_an_unknown_base_is_refused(api: Any) -> None:
    store(api, setting=ClipSetting.parse("global_norm:0.42@0.5"), features={"learning_rate": None})
    reason = ask(api)["reason"]
    assert "is not known there" in reason and "submit a study" in reason


def test_an_unsettled_newest_version_hides_the_settled_one(api: Any) -> None:
    study_id, _ = store(api)
    api.recommend(study_id, reference=reference(), verdict=Verdict.INCONCLUSIVE)
    assert ask(api)["match"] == "none"


def test_another_tenant_finds_nothing_similar(api: Any) -> None:
    store(api)
    other = api.with_key(api.new_key(tenant_id="other"))
    answer = other.get("/v1/recommendations", params=ASKED).json()
    assert answer["match"] == "none" and "has recorded what it trained" in answer["reason"]


def test_the_workload_goes_first(api: Any) -> None:
    study_id, _ = store(api)
    with api.database.read() as session:
        body = recommendations.find_of_study(session, tenant_id="default", study_id=study_id)
    assert body is not None
    exact = ask(api, workload="charlm-rnn", fingerprint=body["fingerprint"])
    assert exact["match"] == "exact" and exact["neighbours"] == []
    assert ask(api, fingerprint=body["fingerprint"]) == exact
    assert ask(api, workload="charlm-rnn", fingerprint="0" * 16)["match"] == "similar"
    assert ask(api, workload="other")["match"] == "similar"
    assert ask(api, fingerprint="0" * 16)["match"] == "similar"
    refused = ask(api, workload="charlm-rnn", fingerprint="0" * 16, median_norm=None)
    assert refused["match"] == "workload"


def test_a_workload_does_not_outweigh_what_is_trained(api: Any) -> None:
    """Its own studies are compared by their features like all others."""
    store(api, features={"learning_rate": 4.0})
    near, _ = store(api)
    store(api, features={"learning_rate": 2.0})
    answer = ask(api, workload="charlm-rnn")
    assert (answer["match"], answer["neighbours"][0]["study_id"]) == ("similar", near)
    far = ask(api, workload="charlm-rnn", learning_rate=1e-4)
    assert far["match"] == "workload" and far["recommendation"]["workload"] == "charlm-rnn"
    for words in ("the newest of the same workload", "nothing similar was found", "at distance 4.00"):
        assert words in far["reason"]
    plain = api.http.get("/v1/recommendations", params={"workload": "charlm-rnn"}).json()
    assert plain["match"] == "exact"


def warm(api: Any, *, median_norm: float = 0.48, **fields: Any) -> list[dict[str, Any]]:
    study = api.study(**fields)
    with api.database.read() as session:
        return recommendations.warm_start(
            session,
            tenant_id="default",
            study_id=study["id"],
            spec=study_spec(study["spec"]),
            reference=reference(median_norm),
        )


def test_a_search_begins_with_its_two_nearest(api: Any) -> None:
    ids = [store(api, features={"learning_rate": rate}, kappa=rate)[0] for rate in (2.0, 1.0, 4.0)]
    found = warm(api)
    assert [each["study_id"] for each in found] == [ids[1], ids[0]]
    assert [each["setting"]["threshold"] for each in found] == [0.48, 0.96]


@pytest.mark.parametrize(
    ("stored", "fields"),
    [
        ({"verdict": Verdict.NO_DIFFERENCE, "setting": OFF_SETTING}, {}),
        ({"features": {"optimizer": "adam"}}, {}),
        ({"features": {"learning_rate": 1000.0}}, {}),
        ({}, {"methods": ["value"]}),
        ({}, {"threshold_low": 1.0, "threshold_high": 2.0}),
        ({"setting": ClipSetting.parse("global_norm:0.42@0.5")}, {}),
    ],
)
def test_what_a_study_would_not_search_is_not_taken_over(
    api: Any, stored: dict[str, Any], fields: dict[str, Any]
) -> None:
    store(api, **stored)
    assert warm(api, **fields) == []


def test_a_tuned_rate_is_taken_over_at_the_new_base(api: Any) -> None:
    """0.5 of a base rate of 2 is the whole of a base rate of 1, and 0.5 of a base rate of 1 stays 0.5."""
    wide = {"learning_rate_low": 0.1, "learning_rate_high": 2.0}
    tuned = ClipSetting.parse("global_norm:0.42@0.5")
    store(api, setting=tuned, features={"learning_rate": 2.0})
    assert [each["setting"]["learning_rate_scale"] for each in warm(api, **wide)] == [1.0]
    store(api, setting=tuned)
    assert [each["setting"]["learning_rate_scale"] for each in warm(api, **wide)] == [0.5, 1.0]
    assert [each["setting"]["learning_rate_scale"] for each in warm(api)] == [1.0]


def test_a_search_looks_at_so_many_neighbours_alone(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the nearest that might give a setting: equal ones say nothing new, and the study's row is held meanwhile."""
    monkeypatch.setattr("service.recommendations.warm.MOST_BODIES", 2)
    for rate in (1.0, 1.1, 1.2):
        store(api, features={"learning_rate": rate}, setting=ClipSetting.parse("value:0.1"))
    for rate in (1.3, 1.4, 1.5):
        store(api, features={"learning_rate": rate})
    store(api, features={"learning_rate": 2.0}, kappa=2.0)
    asked: list[str] = []
    event.listen(api.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert len(warm(api, methods=["global_norm"])) == 1
    assert sum("SELECT cliptune_recommendations.body" in each for each in asked) == 2


def test_an_answer_reads_so_many_neighbours_alone(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose method's threshold can't be carried over are not read at all."""
    monkeypatch.setattr("service.recommendations.similar.MOST_BODIES", 1)
    for rate in (1.0, 1.1):
        store(api, features={"learning_rate": rate}, setting=ClipSetting.parse("value:0.1"))
    for rate in (1.2, 1.3):
        store(api, features={"learning_rate": rate})
    assert len(ask(api)["neighbours"]) == 1


def test_equal_settings_are_taken_over_once(api: Any) -> None:
    store(api)
    store(api)
    assert len(warm(api)) == 1
