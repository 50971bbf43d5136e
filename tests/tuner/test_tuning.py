"""The whole question in one call, on real data and on parts from a notebook."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tuner import Workload, tune
from tuner.errors import LaneError, SpecError, UnknownWorkloadError
from tuner.evidence import Recommendation, Verdict
from tuner.optimizers import adam
from tuner.training.cohort import Event
from tuner.workloads import AnyWorkload

# A fixed number of lanes: `auto` measures, and another measurement may choose another way.
SMALL = {
    "num_trials": 6,
    "cohort_size": 4,
    "num_seeds": 2,
    "num_confirm_seeds": 3,
    "effect": 0.01,
    "lanes": 8,
}


def without_time(found: Recommendation) -> dict[str, object]:
    return {key: value for key, value in found.to_json().items() if key != "train_seconds"}


def test_digits_study_is_answered_and_the_same_again() -> None:
    events: list[Event] = []
    found = tune("digits-mlp", parameters={"hidden": 16}, num_steps=40, on_event=events.append, **SMALL)
    assert found.num_trials == 6
    assert found.search_end == "all 6 settings asked for were tried"
    # The verdict rests on three seeds that the search never saw.
    assert found.num_fresh_seeds == found.off.num_seeds == 3
    assert found.off_failures is not None
    assert found.off_failures.num_lanes == 2 + 3
    ended = [event for event in events if event.kind == "trial"]
    searching = [event for event in ended if [lane.seed for lane in event.lanes] == [0, 1]]
    confirming = [event for event in ended if [lane.seed for lane in event.lanes] == [2, 3, 4]]
    assert (len(searching), len(confirming)) == (6, len(ended) - 6)
    assert len(confirming) >= 2
    assert all(event.state == "complete" for event in confirming)
    kinds = [event.kind for event in events if event.kind != "progress"]
    assert kinds[0] == "probe"
    again = tune("digits-mlp", parameters={"hidden": 16}, num_steps=40, **SMALL)
    assert without_time(again) == without_time(found)


def test_charlm_study_recommends_clipping() -> None:
    found = tune(
        "charlm-rnn",
        parameters={"hidden": 32, "window": 24, "learning_rate": 8.0},
        current="global_norm:1.0",
        num_steps=45,
        num_rungs=2,
        **SMALL,
    )
    assert found.verdict is Verdict.CLIP
    assert found.setting.method == "global_norm"
    assert found.value is not None and found.value.mean is not None
    assert found.off.num_diverged > 0 or found.off.mean > 1.2 * found.value.mean
    assert found.interval is not None
    assert found.interval[0] <= (found.setting.threshold or 0.0) <= found.interval[1]


def test_unconfirmed_study_is_judged_on_its_own_seeds() -> None:
    found = tune("digits-mlp", parameters={"hidden": 8}, num_steps=12, **{**SMALL, "num_confirm_seeds": 0})
    assert found.num_fresh_seeds == 0
    assert found.off.num_seeds == 2
    assert found.off_failures is not None
    assert found.off_failures.num_lanes == 2


def test_parts_from_a_notebook_are_tuned() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=generator)
    targets = inputs.sum(dim=1, keepdim=True)
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    found = tune(
        Workload.of(
            model=lambda: nn.Linear(4, 1),
            train=batches[:6],
            validation=batches[6:],
            loss=lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
            optimizer=adam(0.01),
        ),
        methods=["value"],
        num_steps=20,
        **SMALL,
    )
    assert found.num_trials == 6
    assert found.best is None or found.best.method == "value"


def test_study_in_which_everything_diverges_says_so(toy: Callable[..., AnyWorkload]) -> None:
    found = tune(toy(nan_step=3), num_steps=10, **SMALL)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "Lower the learning rate" in found.reason
    assert found.num_trials == 6
    assert found.off.num_diverged == 2


def test_bad_input_is_refused_before_anything_trains(toy: Callable[..., AnyWorkload]) -> None:
    with pytest.raises(UnknownWorkloadError, match="known workloads: charlm-rnn, digits-mlp"):
        tune("mnist")
    with pytest.raises(SpecError, match="steps is no field of a study"):
        tune("digits-mlp", steps=3)
    with pytest.raises(SpecError, match=r"parameters\.hidden must be >= 1"):
        tune("digits-mlp", parameters={"hidden": 0})
    with pytest.raises(SpecError, match="num_seeds must be a whole number between 2"):
        tune(toy(raise_step=0), num_seeds=1)


def test_broken_workload_names_the_trial(toy: Callable[..., AnyWorkload]) -> None:
    with pytest.raises(LaneError, match="broken data"):
        tune(toy(raise_step=70), num_steps=80, **SMALL)
