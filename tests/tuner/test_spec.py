"""Every bound of a study, and the forms a spec travels in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuner.errors import SpecError, UnknownMethodError
from tuner.parameters import ParameterField, resolve_parameters
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec, canonical_digest, study_spec, workload_fingerprint

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("workload", "", "must not be empty"),
        ("methods", (), "must name at least one"),
        ("methods", ("value", "value"), "must not repeat"),
        ("methods", ("value", "none"), "must not contain 'none'"),
        ("num_trials", 1, "between 2 and 1000, got 1"),
        ("num_trials", 1001, "between 2 and 1000"),
        ("num_trials", 4.0, "must be a whole number"),
        ("num_trials", True, "must be a whole number"),
        ("num_seeds", 1, "between 2 and 32"),
        ("num_seeds", 33, "between 2 and 32"),
        ("num_confirm_seeds", 1, "must be 0, or a whole number between 2 and 64, got 1"),
        ("num_confirm_seeds", -1, "must be 0, or a whole number between 2 and 64"),
        ("num_confirm_seeds", 65, "must be 0, or a whole number between 2 and 64"),
        ("num_confirm_seeds", 2.5, "must be 0, or a whole number"),
        ("num_steps", 0, "between 1 and 10000000"),
        ("num_steps", 10_000_001, "between 1 and 10000000"),
        ("cohort_size", 0, "between 1 and 1000"),
        ("cohort_size", 1001, "between 1 and 1000"),
        ("num_rungs", 0, "between 1 and 10"),
        ("num_rungs", 11, "between 1 and 10"),
        ("reduction_factor", 1, "between 2 and 10"),
        ("reduction_factor", 11, "between 2 and 10"),
        ("seed", -1, "between 0 and 4294967295"),
        ("seed", 2**32, "between 0 and 4294967295"),
        ("effect", -0.1, "must be finite and >= 0"),
        ("effect", NAN, "must be finite and >= 0"),
        ("divergence_factor", 1.0, "must be finite and > 1"),
        ("divergence_factor", INF, "must be finite and > 1"),
    ],
)
def test_bound_is_refused_with_its_field(field: str, value: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        StudySpec(**{"workload": "w", field: value})
    assert caught.value.field == field
    assert words in caught.value.reason
    assert str(caught.value) == f"{field} {caught.value.reason}"


def test_external_study_says_what_it_minimizes() -> None:
    assert StudySpec(workload="my net", external=True, objective="perplexity").objective == "perplexity"
    with pytest.raises(SpecError, match="objective is the workload's own: leave it out, or set external"):
        StudySpec(workload="w", objective="perplexity")
    for objective in ("", "x" * 101):
        with pytest.raises(SpecError, match=f"must have 1 to 100 characters, got {len(objective)}"):
            StudySpec(workload="w", external=True, objective=objective)


def test_external_study_of_the_largest_element_needs_a_range() -> None:
    with pytest.raises(SpecError, match="threshold_low and threshold_high are needed for value"):
        StudySpec(workload="w", external=True, methods=("value",))
    StudySpec(workload="w", external=True, methods=("value",), threshold_low=0.01, threshold_high=1.0)


@pytest.mark.parametrize(
    ("low", "high", "field", "words"),
    [
        (0.0, 1.0, "threshold_low", "must be finite and > 0"),
        (NAN, 1.0, "threshold_low", "must be finite and > 0"),
        (1.0, INF, "threshold_high", "must be finite and > 0"),
        (1.0, None, "threshold_high", "is missing"),
        (None, 1.0, "threshold_low", "is missing"),
        (1.0, 1.0, "threshold_low", "must be < threshold_high"),
    ],
)
def test_range_is_refused(low: float | None, high: float | None, field: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        StudySpec(workload="w", threshold_low=low, threshold_high=high)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("low", "high", "field", "words"),
    [
        (
            0.0,
            1.0,
            "learning_rate_low",
            "must be a factor on the learning rate between 0.0001 and 10000, got 0.0",
        ),
        (9e-5, 1.0, "learning_rate_low", "between 0.0001 and 10000"),
        (NAN, 1.0, "learning_rate_low", "between 0.0001 and 10000, got nan"),
        (1.0, 1e5, "learning_rate_high", "between 0.0001 and 10000"),
        (1.0, INF, "learning_rate_high", "between 0.0001 and 10000"),
        (1.0, None, "learning_rate_high", "is missing: give both ends"),
        (None, 1.0, "learning_rate_low", "is missing: give both ends"),
        (1.0, 1.0, "learning_rate_low", "must be < learning_rate_high, got 1.0 and 1.0"),
        (2.0, 1.0, "learning_rate_low", "must be < learning_rate_high"),
    ],
)
def test_range_of_learning_rates_is_refused(
    low: float | None, high: float | None, field: str, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        StudySpec(workload="w", learning_rate_low=low, learning_rate_high=high)
    assert caught.value.field == field
    assert words in caught.value.reason


def test_learning_rate_is_left_alone_unless_a_range_is_given() -> None:
    assert not StudySpec(workload="w").tunes_learning_rate
    assert StudySpec(workload="w", learning_rate_low=1e-4, learning_rate_high=1e4).tunes_learning_rate
    several = StudySpec(workload="w", methods=("value", "agc"), learning_rate_low=0.1, learning_rate_high=1.0)
    assert several.tunes_learning_rate


def test_range_needs_a_single_method() -> None:
    with pytest.raises(SpecError, match="needs a single method"):
        StudySpec(workload="w", methods=("value", "global_norm"), threshold_low=1.0, threshold_high=2.0)


@pytest.mark.parametrize(
    "field", ["num_trials", "num_seeds", "num_confirm_seeds", "num_steps", "cohort_size", "num_rungs"]
)
def test_ends_of_the_bounds_are_allowed(field: str) -> None:
    for value in {
        "num_trials": (2, 1000),
        "num_seeds": (2, 32),
        "num_confirm_seeds": (0, 2, 64),
        "num_steps": (1, 10_000_000),
        "cohort_size": (1, 1000),
        "num_rungs": (1, 10),
    }[field]:
        assert getattr(StudySpec(**{"workload": "w", field: value}), field) == value


def test_unknown_method_is_its_own_error() -> None:
    with pytest.raises(
        UnknownMethodError, match="no clipping method is called 'spam'; known methods: adagc, agc"
    ):
        StudySpec(workload="w", methods=("spam",))
    with pytest.raises(UnknownMethodError):
        ClipSetting(method="spam", threshold=1.0)


@pytest.mark.parametrize(
    ("method", "threshold", "words"),
    [
        ("none", 1.0, "must be left out"),
        ("value", None, "is required for method 'value': give clip_value > 0"),
        ("value", 0.0, "must be finite and > 0"),
        ("value", -1.0, "must be finite and > 0"),
        ("value", NAN, "must be finite and > 0"),
        ("value", INF, "must be finite and > 0"),
    ],
)
def test_setting_is_refused(method: str, threshold: float | None, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        ClipSetting(method=method, threshold=threshold)
    assert caught.value.field == "threshold"


@pytest.mark.parametrize(
    "text",
    ["none", "global_norm:0.35", "value:1e-06", "global_norm:0.35@0.5", "none@0.0001", "value:2@10000"],
)
def test_text_form_of_a_setting_is_read_back(text: str) -> None:
    assert str(ClipSetting.parse(text)) == text
    assert ClipSetting.parse(text).is_off == text.startswith("none")


def test_text_form_leaves_out_the_workloads_own_rate() -> None:
    assert str(ClipSetting.parse("value:2@1")) == "value:2"
    assert ClipSetting.parse("value:2@1.0") == ClipSetting(method="value", threshold=2.0)
    assert ClipSetting.parse("value:2@0.5") != ClipSetting.parse("value:2")


@pytest.mark.parametrize("scale", [0.0, -1.0, 9e-5, 10001.0, NAN, INF])
def test_learning_rate_of_a_setting_is_refused(scale: float) -> None:
    for method, threshold in (("none", None), ("value", 1.0)):
        with pytest.raises(SpecError, match=r"between 0\.0001 and 10000, got") as caught:
            ClipSetting(method=method, threshold=threshold, learning_rate_scale=scale)
        assert (caught.value.field, caught.value.code) == ("learning_rate_scale", "invalid_spec")


def test_text_that_is_no_setting_is_refused() -> None:
    with pytest.raises(SpecError, match="must be a number, got 'low'"):
        ClipSetting.parse("value:low")
    with pytest.raises(SpecError, match="is required"):
        ClipSetting.parse("value")
    with pytest.raises(SpecError, match="must be a number, got '1e'; write METHOD:THRESHOLD, or") as caught:
        ClipSetting.parse("value:2@1e")
    assert caught.value.field == "learning_rate_scale"
    with pytest.raises(SpecError, match="must be a number, got ''"):
        ClipSetting.parse("value:2@")


@pytest.mark.parametrize(
    ("steps", "rungs", "factor", "expected"),
    [
        (400, 3, 3, (44, 133, 400)),
        (400, 1, 3, (400,)),
        (2, 10, 10, (1, 2)),  # 2 // 10 is 0, raised to 1
        (1, 3, 3, (1,)),
    ],
)
def test_rungs_are_ascending_and_end_at_the_last_step(
    steps: int, rungs: int, factor: int, expected: tuple[int, ...]
) -> None:
    spec = StudySpec(workload="w", num_steps=steps, num_rungs=rungs, reduction_factor=factor)
    assert spec.rung_steps == expected


def test_json_form_is_read_back_equal() -> None:
    spec = StudySpec(
        workload="w",
        parameters={"hidden": 4},
        methods=("value",),
        current=ClipSetting.parse("value:2@0.5"),
        num_confirm_seeds=0,
        learning_rate_low=0.1,
        learning_rate_high=10.0,
        seed=3,
    )
    document = json.loads(json.dumps(spec.to_json()))
    assert study_spec(document) == spec
    assert study_spec(document).digest == spec.digest
    assert study_spec({"workload": "w"}) == StudySpec(workload="w")
    # As a version before learning rates were tuned wrote it.
    earlier = {"workload": "w", "current": {"method": "value", "threshold": 2.0}}
    assert study_spec(earlier).current == ClipSetting.parse("value:2")


def test_unknown_field_is_refused() -> None:
    with pytest.raises(SpecError, match="is no field of a study; the fields are cohort_size, current"):
        study_spec({"workload": "w", "threshold": 1.0})


def test_digest_differs_with_the_question_and_fingerprint_with_what_is_trained() -> None:
    one, other = StudySpec(workload="w"), StudySpec(workload="w", num_trials=3)
    assert one.digest != other.digest
    assert one.fingerprint == other.fingerprint == workload_fingerprint("w", {})
    assert one.fingerprint != StudySpec(workload="w", parameters={"hidden": 3}).fingerprint
    assert canonical_digest({"a": 1, "b": 2}) == canonical_digest({"b": 2, "a": 1})


def test_seeds_are_the_same_for_every_study() -> None:
    assert StudySpec(workload="w", num_seeds=4, seed=9).seeds == (0, 1, 2, 3)


FIELDS = (
    ParameterField(name="hidden", type="integer", default=8, low=1, high=16),
    ParameterField(name="rate", type="number", default=0.1, low=0.0),
    ParameterField(name="cell", type="string", default="rnn", choices=("rnn", "gru")),
    ParameterField(name="bias", type="boolean", default=True),
)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("hidden", 0, "must be >= 1, got 0"),
        ("hidden", 17, "must be <= 16, got 17"),
        ("hidden", 1.5, "must be of type integer, got 1.5"),
        ("hidden", True, "must be of type integer, got True"),
        ("rate", "fast", "must be of type number"),
        ("rate", NAN, "must be finite"),
        ("cell", "lstm", "must be one of rnn, gru, got 'lstm'"),
        ("bias", 1, "must be of type boolean"),
        ("depth", 3, "is no parameter of this workload; its parameters are: hidden, rate, cell, bias"),
    ],
)
def test_parameter_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_parameters(FIELDS, {name: value})
    assert caught.value.field == f"parameters.{name}"
    assert words in caught.value.reason


def test_parameters_are_filled_up_with_defaults_in_order() -> None:
    resolved = resolve_parameters(FIELDS, {"rate": 1, "bias": False})
    assert list(resolved.items()) == [("hidden", 8), ("rate", 1.0), ("cell", "rnn"), ("bias", False)]
    assert isinstance(resolved["rate"], float)


def test_parameter_as_json_schema() -> None:
    assert FIELDS[0].to_schema() == {
        "type": "integer",
        "default": 8,
        "description": "",
        "minimum": 1,
        "maximum": 16,
    }
    assert FIELDS[2].to_schema()["enum"] == ("rnn", "gru")


def test_off_is_off() -> None:
    assert OFF_SETTING.is_off
    assert not ClipSetting.parse("value:1").is_off
