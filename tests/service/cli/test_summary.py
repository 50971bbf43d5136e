"""The table under a finished study: what it says for each verdict, and what it must not say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from service.cli.summary import chart_lines, neighbour_lines, recommendation_lines, trial_lines
from service.schemas import NeighbourOut, RecommendationOut, TrialOut
from tuner.evidence import (
    Estimate,
    FailureRate,
    LaneResult,
    NormSketch,
    PairedDifference,
    Stage,
    TrialState,
    Verdict,
)
from tuner.spec import OFF_SETTING, ClipSetting

BEST = ClipSetting(method="global_norm", threshold=0.25)
NORMS = NormSketch(median=0.5, q90=0.75, q99=1.0, max=2.0)


def estimate(mean: float | None, *, diverged: int = 0) -> Estimate:
    num_seeds = 0 if mean is None else 5 - diverged
    return Estimate(
        mean=mean,
        standard_error=0.01 if num_seeds > 1 else None,
        num_seeds=num_seeds,
        num_diverged=diverged,
    )


def found(verdict: Verdict, setting: ClipSetting = BEST, **changes: Any) -> RecommendationOut:
    difference = PairedDifference(mean=-0.5, low=-0.75, high=-0.25, num_pairs=5)
    values: dict[str, Any] = {
        "id": "i",
        "study_id": "s",
        "workload": "charlm-rnn",
        "fingerprint": "f",
        "parameters": {},
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "verdict": verdict,
        "setting": setting,
        "threshold_name": None if setting.is_off else "max_norm",
        "threshold_unit": "" if setting.is_off else "gradient norm (L2, before clipping)",
        "interval": None if setting.is_off else (0.125, 0.5),
        "reason": "A sentence.",
        "best": BEST,
        "value": estimate(1.5),
        "off": estimate(2.0),
        "difference": difference,
        "against_current": None,
        "clip_fraction": 0.5,
        "mean_scale": 0.75,
        "norms": NORMS,
        "kappa": 0.5,
        "objective": "val_loss",
        "num_trials": 8,
        "num_diverged_trials": 1,
        "lane_steps": 100,
        "full_runs": 2.0,
        "train_seconds": 3.0,
        "snippets": {"pytorch": "torch_snippet", "lightning": "lightning_snippet"},
        "provenance": {},
    }
    return RecommendationOut(**values | changes)


def table(recommendation: RecommendationOut) -> list[tuple[str, str]]:
    """Label and text of each line."""
    lines = recommendation_lines(recommendation)
    assert all(line.startswith(" ") and len(line) <= 120 for line in lines)
    return [(line[1:12].strip(), line[12:]) for line in lines]


def test_clip_says_what_to_use() -> None:
    assert table(found(Verdict.CLIP)) == [
        ("verdict", "CLIP"),
        ("", "A sentence."),
        ("method", "global_norm   (gradient norm (L2, before clipping))"),
        ("threshold", "max_norm = 0.25   as good: 0.125 to 0.5   kappa 0.5"),
        ("val_loss", "global_norm:0.25 1.5000 +- 0.0100   off 2.0000 +- 0.0100"),
        ("", "difference from off -0.5000   95 % interval [-0.7500, -0.2500]   5 seeds (paired t)"),
        ("seeds", "the search's own: the best was chosen on them, so it looks better than it is"),
        ("engages", "50% of steps clipped, mean scale 0.75   (under global_norm:0.25)"),
        ("norms", "median 0.5   q90 0.75   max 2   (before clipping)"),
        ("diverged", "1 of 8 settings had a diverged seed"),
        ("cost", "2.0 full runs, 3.0 s of training"),
        ("use it", "pytorch: torch_snippet"),
        ("", "lightning: lightning_snippet"),
    ]


@pytest.mark.parametrize(
    ("verdict", "headline"),
    [(Verdict.NO_DIFFERENCE, "NO DIFFERENCE"), (Verdict.DO_NOT_CLIP, "DO NOT CLIP")],
)
def test_off_is_a_setting_to_use_without_a_threshold(verdict: Verdict, headline: str) -> None:
    rows = table(found(verdict, OFF_SETTING))
    assert rows[0] == ("verdict", headline)
    assert ("method", "none (train without clipping)") in rows
    assert ("use it", "pytorch: torch_snippet") in rows
    assert "threshold" not in dict(rows)
    # The figures are those of the best clip setting, and say so.
    assert dict(rows)["engages"].endswith("(under global_norm:0.25)")


def test_inconclusive_setting_is_the_best_seen_and_not_what_to_use() -> None:
    for setting, method in [
        (BEST, "global_norm   (gradient norm (L2, before clipping))   best seen, not settled"),
        (OFF_SETTING, "none (train without clipping)   best seen, not settled"),
    ]:
        rows = table(found(Verdict.INCONCLUSIVE, setting))
        assert rows[0] == ("verdict", "INCONCLUSIVE")
        assert ("method", method) in rows
        assert ("best seen", "pytorch: torch_snippet") in rows
        assert "use it" not in dict(rows)


def test_without_a_best_nothing_is_claimed_of_it() -> None:
    nothing = dict.fromkeys(("best", "value", "difference", "clip_fraction", "mean_scale", "norms", "kappa"))
    rows = table(found(Verdict.INCONCLUSIVE, OFF_SETTING, off=estimate(None, diverged=5), **nothing))
    assert ("method", "none (train without clipping)   not settled") in rows
    assert ("val_loss", "off diverged in all 5 seeds") in rows
    assert ("unsettled", "pytorch: torch_snippet") in rows
    assert not {"engages", "norms", "seeds", "threshold", "best seen", "use it"} & set(dict(rows))


def test_off_that_diverged_in_every_seed_leaves_no_difference() -> None:
    rows = table(found(Verdict.CLIP, off=estimate(None, diverged=5), difference=None))
    assert ("val_loss", "global_norm:0.25 1.5000 +- 0.0100   off diverged in all 5 seeds") in rows
    assert not [text for _, text in rows if text.startswith("difference")]


def test_off_that_has_not_ended_is_not_called_diverged() -> None:
    rows = table(found(Verdict.INCONCLUSIVE, off=estimate(None), difference=None))
    assert ("val_loss", "global_norm:0.25 1.5000 +- 0.0100   off no result") in rows


def test_missing_interval_of_thresholds_is_left_out() -> None:
    assert ("threshold", "max_norm = 0.25   kappa 0.5") in table(found(Verdict.CLIP, interval=None))


def test_heavy_tails_are_told_beside_the_norms() -> None:
    rows = table(found(Verdict.CLIP, spike_ratio=4.25, tail_index=3.875))
    text = "median 0.5   q90 0.75   max 2   spike ratio 4.25   tail index 3.88   (before clipping)"
    assert ("norms", text) in rows


def trial(number: int, setting: ClipSetting, *num_shared_steps: int) -> TrialOut:
    """A complete trial whose lanes took nine steps, some of them as off."""
    lanes = tuple(
        LaneResult(
            seed=seed,
            num_steps=9,
            value=1.5,
            divergence_step=None,
            clip_fraction=0.0,
            mean_scale=1.0,
            norms=None,
            num_non_finite=0,
            seconds=0.5,
            num_shared_steps=shared,
        )
        for seed, shared in enumerate(num_shared_steps)
    )
    return TrialOut(
        id=str(number), number=number, cohort=0, setting=setting, state=TrialState.COMPLETE, mean=1.5,
        standard_error=None, num_diverged=0, clip_fraction=0.0, lanes=lanes, rungs={},
    )  # fmt: skip


def test_what_the_answer_rests_on_is_told() -> None:
    matched = PairedDifference(mean=-0.25, low=-0.5, high=0.0, num_pairs=6)
    rows = table(
        found(
            Verdict.INCONCLUSIVE,
            version=2,
            setting=ClipSetting.parse("global_norm:0.25@0.5"),
            study_id="0123456789abcdef",
            num_fresh_seeds=6,
            more_seeds=9,
            failures=FailureRate(num_failed=0, num_lanes=9, low=0.0, high=0.299),
            off_failures=FailureRate(num_failed=3, num_lanes=9, low=0.121, high=0.646),
            step_cap=0.125,
            matched=estimate(1.75),
            against_matched=matched,
            search_end="all 8 settings asked for were tried",
        )
    )
    assert rows[0] == ("verdict", "INCONCLUSIVE   version 2")
    for row in (
        ("rate", "learning rate x 0.5"),
        ("seeds", "6 fresh ones, which the search never saw"),
        ("matched", "off at the learning rate x mean scale 1.7500 +- 0.0100"),
        (
            "",
            "difference from the matched rate -0.2500   95 % interval [-0.5000, +0.0000]   6 seeds (paired t)",
        ),
        ("step cap", "0.125   (learning rate x threshold: no step is longer)"),
        ("search", "ended because all 8 settings asked for were tried"),
        (
            "settle it",
            "cliptune extend 01234567 --seeds 9   (as many further fresh seeds would about do)",
        ),
    ):
        assert row in rows
    at = [label for label, _ in rows].index("failed")
    told = f"{rows[at][1]} {rows[at + 1][1]}" if not rows[at + 1][0] else rows[at][1]
    assert "global_norm:0.25 0 of 9 runs (95 % interval 0% to 30%)" in told
    assert "off 3 of 9 runs (95 % interval 12% to 65%)" in told


def test_neighbours_are_two_lines_each() -> None:
    neighbours = [
        NeighbourOut(
            recommendation_id="r",
            study_id="0123456789",
            workload="charlm-rnn",
            verdict=verdict,
            setting=setting,
            interval=(0.125, 0.5) if setting is BEST else None,
            kappa=0.5 if setting is BEST else None,
            distance=0.25,
            quality="close",
            differences=("another model", "batch size 32 there, 64 here") if setting is BEST else (),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        for verdict, setting in ((Verdict.CLIP, BEST), (Verdict.NO_DIFFERENCE, OFF_SETTING))
    ]
    lines = neighbour_lines(neighbours, "word " * 60)
    assert all(len(line) <= 120 for line in lines)
    assert [(line[1:12].strip(), line[12:]) for line in lines[-4:]] == [
        ("close", "global_norm:0.25   as good: 0.125 to 0.5   kappa 0.5"),
        (
            "",
            "CLIP in study 01234567 (charlm-rnn), distance 0.25: another model, batch size 32 there, 64 here",
        ),
        ("close", "none"),
        ("", "NO DIFFERENCE in study 01234567 (charlm-rnn), distance 0.25: nothing that is known"),
    ]


def test_repeats_on_fresh_seeds_are_marked_and_not_drawn() -> None:
    searched = trial(1, BEST, 0, 0)
    repeated = trial(2, ClipSetting.parse("global_norm:4"), 0, 0).model_copy(
        update={"stage": Stage.CONFIRM, "seeds": (3, 4, 5), "mean": 7.5}
    )
    lines = trial_lines([trial(0, OFF_SETTING, 0, 0), searched, repeated])
    assert lines[-1].endswith("  fresh seeds 3 to 5") and len(lines[-1]) <= 120
    drawn = chart_lines([searched, repeated], "global_norm", objective="val_loss", interval=None)
    assert drawn == chart_lines([searched], "global_norm", objective="val_loss", interval=None)


def test_settings_that_did_nothing_are_marked_and_the_mark_is_explained() -> None:
    lines = trial_lines(
        [trial(0, OFF_SETTING, 0, 0), trial(1, BEST, 9, 9), trial(2, BEST, 9, 4), trial(3, BEST)]
    )
    assert [line.endswith("  = off") for line in lines[1:-1]] == [False, True, False, False]
    assert lines[-1] == " = off: trained once as off: its threshold was never exceeded"
    assert all(len(line) <= 120 and line == line.rstrip() for line in lines)


def test_nothing_is_explained_that_is_not_there() -> None:
    lines = trial_lines([trial(0, OFF_SETTING, 9, 9), trial(1, BEST, 9, 4)])
    assert len(lines) == 3 and "= off" not in "".join(lines)


def test_long_rows_are_broken_between_their_parts() -> None:
    difference = PairedDifference(
        mean=-3.4306,
        low=-10.6175,
        high=3.7562,
        num_pairs=3,
        test="paired t, Bonferroni over 12 settings",
    )
    rows = table(
        found(
            Verdict.CLIP,
            off=estimate(5.0, diverged=2),
            difference=difference,
            reason="word " * 50,
            objective="validation loss",
        )
    )
    at = rows.index(("", "difference from off -3.4306   95 % interval [-10.6175, +3.7562]   3 seeds"))
    assert rows[at + 1] == ("", "(paired t, Bonferroni over 12 settings)   surviving seeds only")
    assert sum(text.startswith("word") for _, text in rows) == 3
    assert any(
        line.startswith(" validation loss global_norm")
        for line in recommendation_lines(found(Verdict.CLIP, objective="validation loss"))
    )
