"""The charts' data: marks where the documents say, intervals by the book, search and confirmation apart."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from scipy.special import stdtrit

from service.report.candidates import Findings
from service.report.curve_figures import curve_figures, mean_curve
from service.report.figures import Figure
from service.report.intervals import mean_interval, t_bound
from service.report.norm_figures import norm_figures
from service.report.objective_figure import objective_figure
from service.report.rate_figures import rate_figures
from tuner.evidence import Stage, TrialState
from tuner.records import BINS_PER_OCTAVE, NormHistogram
from tuner.spec import OFF_SETTING, ClipSetting


@pytest.fixture
def findings(documents: Any) -> Findings:
    return Findings(documents.study(documents.answer()), tuple(documents.trials()))


def traces(figure: Figure) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure.data if "name" in trace}


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 31, 32, 95])
def test_t_bound_is_scipys(degrees: int) -> None:
    assert t_bound(degrees) == pytest.approx(float(stdtrit(degrees, 0.975)), rel=1e-10)


def test_one_seed_has_no_interval() -> None:
    assert mean_interval(1.0, None, 1) is None


def test_marks_say_what_became_of_a_setting(findings: Findings) -> None:
    drawn = traces(objective_figure(findings, "global_norm"))
    assert drawn["trained to the end"]["x"] == [1.0, 0.25]
    assert drawn["repeated on fresh seeds"]["x"] == [0.25]
    assert drawn["stopped early"]["x"] == [0.01]
    assert drawn["stopped early"]["marker"]["symbol"] == "circle-open"
    assert drawn["a seed diverged: mean of the others"]["x"] == [8.0]
    assert drawn["every seed diverged (drawn at the top)"]["x"] == [16.0]
    assert len(drawn["single seeds"]["x"]) == 3 * 3 + 2 + 2


def test_too_many_seeds_are_not_drawn(documents: Any) -> None:
    trial = documents.trial(0, "global_norm:1", [1.0])
    many = trial.model_copy(update={"lanes": trial.lanes * 5001})
    figure = objective_figure(Findings(documents.study(), (many,)), "global_norm")
    assert "single seeds" not in traces(figure)
    assert "Single seeds are left out: there are 5,001." in figure.caption


def test_bars_are_intervals_of_the_mean(findings: Findings) -> None:
    end = traces(objective_figure(findings, "global_norm"))["trained to the end"]
    # 1.4, 1.5, 1.6: standard error 0.1 / sqrt(3), two degrees of freedom.
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert end["y"][1] == pytest.approx(1.5)
    assert end["error_y"]["array"][1] == pytest.approx(half, rel=1e-6)
    assert end["error_y"]["arrayminus"][1] == pytest.approx(half, rel=1e-6)


def test_off_today_and_equally_good_thresholds_are_bands(documents: Any) -> None:
    study = documents.study(
        documents.answer(), spec={"current": ClipSetting(method="global_norm", threshold=1)}
    )
    figure = objective_figure(Findings(study, tuple(documents.trials())), "global_norm")
    shapes = {shape["name"]: shape for shape in figure.layout["shapes"] if shape["showlegend"]}
    off = shapes["off: 2.100 \u00b1 0.10"]
    assert (off["y0"], off["y1"]) == pytest.approx((2.1 - 1.27062, 2.1 + 1.27062))
    assert "today's value: 2.000 \u00b1 0.058" in shapes
    good = shapes["equally good: 0.125 \u2013 1"]
    assert (good["x0"], good["x1"]) == (0.125, 1.0)
    best = shapes["best: global_norm, max_norm = 0.25"]
    assert best["x0"] == best["x1"] == 0.25


def test_a_method_that_is_not_the_best_has_no_interval(documents: Any) -> None:
    trials = (*documents.trials(), documents.trial(8, "value:0.5", [1.8, 1.9]))
    figure = objective_figure(Findings(documents.study(documents.answer()), trials), "value")
    assert [shape["name"] for shape in figure.layout["shapes"]] == ["off: 2.100 \u00b1 0.10"] * 2


@pytest.mark.parametrize(
    ("values", "kind"), [([-3.0, 2.0, 1.0], None), ([1.0, 1.1, 1.2], None), ([0.1, 1.0, 9.0], "log")]
)
def test_objectives_far_apart_are_on_a_logarithmic_axis(
    values: list[float], kind: str | None, documents: Any
) -> None:
    trials = [documents.trial(i, f"global_norm:{i + 1}", [each] * 2) for i, each in enumerate(values)]
    figure = objective_figure(Findings(documents.study(), tuple(trials)), "global_norm")
    assert figure.layout["yaxis"].get("type") == kind
    low, high = figure.layout["yaxis"]["range"]
    ends = (math.log10(min(values)), math.log10(max(values))) if kind else (min(values), max(values))
    assert low < ends[0] and ends[1] < high


def test_curves_are_those_of_the_settings_that_matter(findings: Findings) -> None:
    training, objective = curve_figures(findings)
    named = [trace["name"] for trace in training.data if "name" in trace]
    assert named == ["best: global_norm, max_norm = 0.25", "off (no clipping)"]
    seeds = [trace for trace in training.data if "name" not in trace]
    assert len(seeds) == 5 + 5
    lane = findings.trials[2].lanes[0]
    assert lane.curve is not None
    assert tuple(zip(seeds[0]["x"], seeds[0]["y"], strict=True)) == lane.curve.points(30)
    # Before the first step, and at the only rung; seeds 0 and 1 are in both stages.
    assert objective.data[0]["x"] == [0.0, 30.0]
    assert objective.data[0]["y"] == [4.0, 1.4]


def test_mean_curve_is_of_the_seeds_that_trained_longest(documents: Any) -> None:
    short = documents.lane(2, None, steps=7)
    trial = documents.trial(0, OFF_SETTING, [2.0, 2.0])
    trial = trial.model_copy(update={"lanes": (*trial.lanes, short)})
    training, _ = curve_figures(Findings(documents.study(), (trial,)))
    mean = training.data[-1]
    assert len(mean["x"]) == 30
    assert "mean of 2 seeds" in mean["text"][0]
    curves = [lane.curve.points(30) for lane in trial.lanes[:2] if lane.curve]
    assert mean["y"] == [value for _, value in mean_curve(curves)]


def test_areas_of_histograms_are_one(findings: Findings) -> None:
    histogram, _ = norm_figures(findings)
    for trace in histogram.data:
        edges, heights = trace["x"][1:], trace["y"][1:-1]
        octaves = [math.log2(high / low) for low, high in pairwise(edges)]
        area = sum(height * width for height, width in zip(heights, octaves, strict=True))
        assert area == pytest.approx(1.0)
        assert min(octaves) >= 1 / BINS_PER_OCTAVE * (1 - 1e-9)
    (line,) = histogram.layout["shapes"]
    assert line["x0"] == 0.25
    low, high = histogram.layout["xaxis"]["range"]
    # The lanes' norms lie in [0.1, 1.1).
    assert -1.3 < low < math.log10(0.25) < high < 0.3


def test_a_rare_norm_does_not_widen_the_axis(documents: Any) -> None:
    trial = documents.trial(0, OFF_SETTING, [2.0])
    usual = NormHistogram.on_grid(0, 32, [500, 500])
    spike = NormHistogram.on_grid(20, 32, [1])
    lanes = tuple(replace(trial.lanes[0], seed=i, histogram=each) for i, each in enumerate((usual, spike)))
    histogram, _ = norm_figures(Findings(documents.study(), (trial.model_copy(update={"lanes": lanes}),)))
    assert max(histogram.data[0]["x"]) == 2.0**21
    assert histogram.layout["xaxis"]["range"][1] < math.log10(8)


def test_a_threshold_that_is_no_norm_is_not_drawn_among_norms(documents: Any) -> None:
    trials = (documents.trial(0, OFF_SETTING, [2.0, 2.1]), documents.trial(1, "autoclip:80", [1.0, 1.1]))
    histogram, _ = norm_figures(Findings(documents.study(), trials))
    assert histogram.layout["shapes"] == []
    assert "The threshold of autoclip is no norm" in histogram.caption


def test_failures_are_of_runs_trained_to_the_end(findings: Findings) -> None:
    _, failing = rate_figures(findings, "global_norm")
    drawn = traces(failing)
    shares = dict(zip(drawn["trained to the end"]["x"], drawn["trained to the end"]["y"], strict=True))
    assert shares == {0.25: 0.0, 1.0: 0.0, 8.0: pytest.approx(1 / 3), 16.0: 1.0}
    assert drawn["stopped early: diverged until then"]["x"] == [0.01]
    # Wilson, none of five: the upper end is z^2 / (5 + z^2).
    upper = dict(
        zip(drawn["trained to the end"]["x"], drawn["trained to the end"]["error_y"]["array"], strict=True)
    )
    assert upper[0.25] == pytest.approx(1.959964**2 / (5 + 1.959964**2))


def test_clipping_is_drawn_by_threshold(findings: Findings) -> None:
    clipping, _ = rate_figures(findings, "global_norm")
    drawn = traces(clipping)
    assert drawn["clip fraction"]["x"] == [0.25, 1.0, 8.0, 16.0]
    lanes = [lane for number in (2, 7) for lane in findings.trials[number].lanes]
    mean = sum(lane.clip_fraction for lane in lanes) / len(lanes)
    assert drawn["clip fraction"]["y"][0] == pytest.approx(mean)
    assert drawn["mean scale, stopped early"]["x"] == [0.01]


# ---- what each setting is to the reader ----


def test_confirmation_is_believed_over_the_search(findings: Findings) -> None:
    assert findings.best is not None and findings.best.told.stage is Stage.CONFIRM
    assert [role for role, _ in findings.compared] == ["best", "off"]
    assert len(findings.best.lanes) == 5


def test_best_of_a_running_study_is_the_lowest_sound_mean(documents: Any) -> None:
    trials = [
        documents.trial(0, "global_norm:1", [1.0, None]),
        documents.trial(1, "global_norm:2", [1.1, 1.1], state=TrialState.PRUNED),
        documents.trial(2, "global_norm:3", [1.5, 1.5]),
        documents.trial(3, "global_norm:4", [1.6, 1.6]),
        documents.trial(4, OFF_SETTING, [1.2, 1.2]),
    ]
    found = Findings(documents.study(), tuple(trials))
    assert found.best is not None and found.best.setting.threshold == 3.0
    assert Findings(documents.study(), tuple(trials[:2])).best is None


def test_off_is_the_one_that_the_answer_compares_with(documents: Any) -> None:
    trials = (documents.trial(0, OFF_SETTING, [2.4, 2.6]), documents.trial(1, "none@0.5", [2.0, 2.2]))
    answered = Findings(documents.study(documents.answer()), trials)
    assert answered.off is not None and answered.off.setting.learning_rate_scale == 0.5
    running = Findings(documents.study(), trials)
    assert running.off is not None and running.off.setting == OFF_SETTING
