"""The error tree: built-in kinds, stable codes, sentences with the facts."""

from __future__ import annotations

import pytest

from tuner import errors


@pytest.mark.parametrize(
    ("error", "kind", "code", "sentence"),
    [
        (errors.SpecError("seed", "must be >= 0"), ValueError, "invalid_spec", "seed must be >= 0"),
        (
            errors.UnknownMethodError("agc", ["value", "none"]),
            LookupError,
            "unknown_method",
            "no clipping method is called 'agc'; known methods: none, value",
        ),
        (
            errors.UnknownWorkloadError("x", ["b", "a"]),
            LookupError,
            "unknown_workload",
            "no workload is called 'x'; known workloads: a, b",
        ),
        (
            errors.UnknownWorkloadError("x", []),
            LookupError,
            "unknown_workload",
            "no workload is called 'x'; known workloads: none yet (start a worker: it registers its workloads; "
            "CLIPTUNE_WORKLOADS names yours)",
        ),
        (
            errors.NoTrialsError(),
            ValueError,
            "no_trials",
            "no trial has ended yet, so there is nothing to recommend: wait for the first cohort",
        ),
        (
            errors.ProbeError("the median is 0"),
            ArithmeticError,
            "probe_failed",
            "the median is 0; check the loss and the data of the first training batches",
        ),
        (
            errors.LaneError("7", 1, 20, KeyError("x")),
            RuntimeError,
            "lane_failed",
            "trial 7 with seed 1 failed at step 20: KeyError: 'x'",
        ),
    ],
)
def test_error(error: errors.TunerError, kind: type[Exception], code: str, sentence: str) -> None:
    assert isinstance(error, errors.TunerError)
    assert isinstance(error, kind)
    assert error.code == code
    assert str(error) == sentence


def test_every_error_is_drawn_in_the_tree_and_has_a_code_of_its_own() -> None:
    # Other modules have errors of their own, and another test may have loaded them.
    classes = [each for each in errors.TunerError.__subclasses__() if each.__module__ == errors.__name__]
    assert classes
    assert len({each.code for each in classes}) == len(classes)
    for each in classes:
        assert f"-- {each.__name__}(" in (errors.__doc__ or "")
