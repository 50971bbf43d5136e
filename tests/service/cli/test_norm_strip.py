"""The picture of a probe: quantiles and rules stand where their logarithms put them, and old references are shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.cli.norm_strip import draw_strip, probe_lines, probe_summary
from tuner.evidence import NormSketch, Reference, Smoothness
from tuner.search.prior import Rule, prior
from tuner.spec import ClipSetting

OLD = NormSketch(median=0.24, q90=0.4, q99=0.5, max=1.31)
NORMS = NormSketch(min=0.1, q01=0.2, q10=0.5, median=1.0, q90=2.0, q99=5.0, max=10.0)


def rule(threshold: float) -> Rule:
    setting = ClipSetting(method="global_norm", threshold=threshold)
    return Rule(name="r", setting=setting, kappa=1.0, clip_fraction=0.5, source="s", sentence="t")


def plot(lines: list[str]) -> list[str]:
    return [line[2:-1] for line in lines if line.startswith(" |")]


def test_rules_stand_below_the_quantile_that_they_are() -> None:
    strip, marks = plot(draw_strip(NORMS, [rule(0.1), rule(1.0), rule(10.0)], width=41))
    assert marks.index("b") == strip.index("#") == 20
    assert (marks.index("a"), marks.index("c")) == (0, 40)
    assert (strip.index("-"), strip.rindex("-")) == (6, 34)
    assert (strip.index("="), strip.rindex("=")) == (14, 26)


def test_rules_beyond_the_norms_widen_the_axis() -> None:
    lines = draw_strip(NORMS, [rule(0.01), rule(100.0)], width=41)
    strip, marks = plot(lines)
    assert strip.strip() == strip[10:31]
    assert (marks.index("a"), marks.index("b")) == (0, 40)
    assert lines[-1].split() == ["0.01", "100", "norm", "(log)"]


def test_rules_on_one_spot_get_lines_of_their_own() -> None:
    _, first, second = plot(draw_strip(NORMS, [rule(1.0), rule(1.001), rule(2.0)], width=21))
    assert (first[10], second[10]) == ("a", "b")
    assert first.count("c") == 1


@given(st.lists(st.floats(1e-6, 1e6), min_size=7, max_size=7), st.lists(st.floats(1e-6, 1e6), max_size=8))
def test_any_norms_and_rules_can_be_drawn(values: list[float], thresholds: list[float]) -> None:
    least, q01, q10, median, q90, q99, largest = sorted(values)
    norms = NormSketch(min=least, q01=q01, q10=q10, median=median, q90=q90, q99=q99, max=largest)
    strip, *marks = plot(draw_strip(norms, [rule(each) for each in thresholds]))
    assert {len(row) for row in (strip, *marks)} == {76}
    assert strip.count("#") == 1
    assert sum(character != " " for row in marks for character in row) == len(thresholds)


def test_smallest_norm_of_zero_is_not_drawn() -> None:
    norms = NormSketch(min=0.0, q01=0.0, q10=0.5, median=1.0, q90=2.0, q99=5.0, max=10.0)
    assert plot(draw_strip(norms, []))[0].strip(" ").endswith(".")


def test_reference_of_an_earlier_version_is_shown() -> None:
    reference = Reference(l2_norm=OLD, max_abs=OLD, num_batches=64)
    assert probe_summary(reference) == (
        "median norm 0.24   q90 0.4   max 1.31   (before clipping)   "
        "rule of thumb global_norm:0.4, clipping may help"
    )
    page = "\n".join(probe_lines(reference, prior(reference)))
    assert "spike ratio not measured   tail index not measured" in page
    assert " curvature  not measured" in page


def test_summary_has_what_was_measured() -> None:
    smoothness = Smoothness(l0=1.0, l1=0.0, num_points=24, correlation=0.0)
    reference = Reference(
        l2_norm=OLD, max_abs=OLD, num_batches=102, spike_ratio=5.46, tail_index=6.1, smoothness=smoothness
    )
    assert "max 1.31   spike ratio 5.46   tail index 6.1   (before clipping)" in probe_summary(reference)
