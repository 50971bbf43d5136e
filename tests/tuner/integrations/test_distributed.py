"""One trial for all ranks: two real processes under torchrun, and what a single one sees."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tuner.errors import TrialPruned
from tuner.inline import Clipper
from tuner.integrations.distributed import (
    RankZeroError,
    RankZeroTrial,
    agreed_loss,
    is_rank_zero,
    mean_over_ranks,
    num_ranks,
    on_rank_zero,
)

PROGRAM = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw, by scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(PROGRAM), str(folder)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def by_scenario(ranks: list[dict[str, Any]], name: str) -> tuple[Any, Any]:
    return ranks[0][name], ranks[1][name]


# ---- two processes ----


def test_every_rank_has_the_trial(ranks: list[dict[str, Any]]) -> None:
    for rank in by_scenario(ranks, "whole_training"):
        assert (rank["setting"], rank["seed"], rank["num_steps"]) == ("global_norm:0.5", 7, 6)
        assert rank["parameters"] == {"width": 8}


def test_norms_and_weights_agree_to_the_bit(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "whole_training")
    assert first["norms"] == second["norms"]
    assert first["weights"] == second["weights"]
    assert len(first["norms"]) == 6 and min(first["norms"]) > 0.5, "every step is clipped"


def test_norm_is_that_of_the_whole_batch(
    ranks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    from ranks import batches, new_model

    model, clipper = new_model(), Clipper.from_setting("global_norm:0.5")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, targets in batches(7):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs).squeeze(1), targets).backward()
        clipper(model)
        optimizer.step()
    assert by_scenario(ranks, "whole_training")[0]["norms"] == pytest.approx(clipper.drain_norms(), rel=1e-5)


def test_only_rank_zero_reports_once_per_step(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "whole_training")
    assert [step for step, _ in first["reports"]] == [1, 2, 3, 4, 5, 6]
    assert second["reports"] == []


def test_pruning_reaches_all_ranks_at_the_same_step(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "pruned_training")
    assert (first["last_step"], first["ended"]) == (second["last_step"], second["ended"])
    assert (first["last_step"], first["ended"]) == (3, "pruned at step 3")
    assert first["weights"] == second["weights"]
    assert len(first["reports"]) == 3


def test_being_pruned_is_no_error_behind_the_context(ranks: list[dict[str, Any]]) -> None:
    assert by_scenario(ranks, "pruned_in_a_context") == ({"left": True}, {"left": True})


def test_methods_with_a_scale_get_the_same_one(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "method_with_a_scale")
    assert first["reference_norm"] == second["reference_norm"] == 2.5
    assert first["weights"] == second["weights"]


@pytest.mark.parametrize("clips", ["attached", "trial"])
def test_an_outlier_on_one_rank_skips_the_step_on_all(ranks: list[dict[str, Any]], clips: str) -> None:
    assert by_scenario(ranks, f"skipping_{clips}") == ({"skipped": [79]}, {"skipped": [79]})


def test_failed_report_ends_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "failing_report")
    assert (first["error"], first["text"]) == ("ConnectionError", "the service is gone")
    assert second["error"] == "RankZeroError"
    assert "ConnectionError: the service is gone; see the log of rank 0" in second["text"]
    assert len(first["reports"]) == 1


def test_interrupt_on_rank_zero_ends_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "interrupted_report")
    assert (first["error"], second["error"]) == ("KeyboardInterrupt", "RankZeroError")


def test_result_that_can_not_be_sent_ends_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "unsendable_result")
    assert (first["error"], second["error"]) == ("TypeError", "RankZeroError")


def test_rank_zero_asks_for_all(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "asking")
    assert (first["none_left"], second["none_left"]) == (True, True)
    assert (first["setting"], second["setting"]) == ("value:0.25", "value:0.25")
    assert (first["calls"], second["calls"]) == ([0, 0], [])
    assert (first["refused"]["error"], second["refused"]["error"]) == ("ConnectionError", "RankZeroError")


def test_rank_zero_without_a_trial_ends_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "asking")
    assert first["no_trial"] == {"error": "TypeError", "text": "rank 0 must hold the trial, got None"}
    assert second["no_trial"]["error"] == "RankZeroError"


def test_callbacks_share_a_trial_and_refuse_one_per_rank(ranks: list[dict[str, Any]]) -> None:
    first, second = by_scenario(ranks, "attached_trials")
    assert first["went_on"] == second["went_on"] == [True, False, False]
    assert (first["reports"], second["reports"]) == (2, 0)
    assert first["refused"]["error"] == second["refused"]["error"] == "TrainerSetupError"
    assert "a FunctionTrial on 2 ranks would be reported by each of them" in first["refused"]["text"]


def test_means_over_ranks(ranks: list[dict[str, Any]]) -> None:
    expected = {"mean": 0.5, "weighted": 0.75, "nan": "nan"}
    assert by_scenario(ranks, "means") == (expected, expected)


def test_trial_made_before_the_group_is_shared_at_its_first_use(ranks: list[dict[str, Any]]) -> None:
    expected = {"setting": "global_norm:2"}
    assert by_scenario(ranks, "late_group") == (expected, expected)


# ---- a single process ----


def test_single_process_talks_to_its_own_trial(make_trial: Callable[..., Any]) -> None:
    trial, told = make_trial(prune_at=2)
    alone = RankZeroTrial(trial)
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert float(alone.clip([parameter], loss=torch.tensor(1.0))) == 5.0
    assert alone.clipper is trial.clipper
    assert (alone.setting, alone.seed, alone.num_steps) == (trial.setting, trial.seed, trial.num_steps)
    with alone as entered:
        assert entered is alone
        alone.report(1, 0.5)
        alone.report(2, 0.25)
    assert told.reports == [(1, 0.5), (2, 0.25)]


def test_single_process_without_a_trial_is_told() -> None:
    with pytest.raises(TypeError, match="rank 0 must hold the trial"):
        _ = RankZeroTrial(None).setting


def test_reading_the_setting_is_left_to_the_user(make_trial: Callable[..., Any]) -> None:
    """A trial takes note of whether the factor on the learning rate was read."""
    trial, _ = make_trial()
    alone = RankZeroTrial(trial)
    _ = alone.seed
    assert not trial.knows_rate_scale
    _ = alone.setting
    assert trial.knows_rate_scale


def test_context_manager_of_the_trial_is_entered_and_left() -> None:
    class Opened:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def __enter__(self) -> Opened:
            self.seen.append("entered")
            return self

        def __exit__(self, kind: object, error: object, where: object) -> bool:
            self.seen.append(kind)
            return True

    opened: Any = Opened()
    with RankZeroTrial(opened):
        raise ValueError("in the training")
    assert opened.seen == ["entered", ValueError]


def test_asking_alone(make_trial: Callable[..., Any]) -> None:
    trial, _ = make_trial("value:0.25")
    asked = RankZeroTrial.ask(lambda: trial)
    assert asked is not None and asked.clipper is trial.clipper
    assert RankZeroTrial.ask(lambda: None) is None


def test_alone_everything_is_what_it_would_be() -> None:
    assert (num_ranks(), is_rank_zero()) == (1, True)
    assert mean_over_ranks(torch.tensor(1.5), weight=3.0) == 1.5
    assert isnan(mean_over_ranks(nan))
    assert on_rank_zero(lambda: "done") == "done"
    loss = torch.tensor(1.0)
    assert agreed_loss(Clipper.from_setting("skip_step:3"), loss) is loss
    with pytest.raises(TrialPruned, match="enough"):
        on_rank_zero(lambda: (_ for _ in ()).throw(TrialPruned("enough")))


def test_rank_zero_error_says_where_to_look() -> None:
    error = RankZeroError("OSError: no space left")
    assert error.code == "rank_zero_failed"
    assert str(error) == (
        "rank 0 failed, so that this rank stops too: OSError: no space left; see the log of rank 0"
    )
