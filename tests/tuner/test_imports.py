"""What may be imported without paying for torch, Optuna or numpy, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tuner

LOADED = (
    "import sys; print(' '.join(sorted({'torch', 'optuna', 'numpy', 'scipy', 'sklearn'} & set(sys.modules))))"
)


def loaded_by(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{LOADED}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_specs_and_evidence_load_nothing_heavy() -> None:
    light = ("errors", "methods", "spec", "evidence", "snippets", "optimizers", "training.cohort")
    search = (
        "search",
        "search.halving",
        "search.confirmation",
        "search.stopping",
        "search.space",
        "search.statistics",
        "search.search",
    )
    names = ", ".join(f"tuner.{name}" for name in (*light, *search))
    assert loaded_by(f"import tuner, {names}, tuner.search.planning, tuner.search.recommendation") == set()


def test_training_process_loads_neither_optuna_nor_scipy_nor_sklearn() -> None:
    loaded = loaded_by(
        "from tuner.training.loop import train_cohort\n"
        "from tuner.training.probe import measure_reference\n"
        "from tuner.search.halving import halving\n"
        "from tuner.workloads import create_workload, describe_workloads\n"
        "describe_workloads()\n"
        "measure_reference(create_workload('charlm-rnn', {'hidden': 2}), (0, 1), num_batches=2)"
    )
    assert loaded & {"optuna", "scipy", "sklearn"} == set()
    assert "torch" in loaded


@pytest.mark.parametrize("name", tuner.__all__)
def test_public_names_are_importable(name: str) -> None:
    assert getattr(tuner, name).__name__ == name


def test_tune_is_the_function_even_after_its_module_was_imported() -> None:
    assert loaded_by("import tuner.tuning\nfrom tuner import tune\nassert callable(tune)")


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'tuna'"):
        tuner.tuna  # noqa: B018
