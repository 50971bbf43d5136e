"""Two probes compared: what counts as a change, what is chance, and what is said of it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ci.drift import MIN_SEEDS, Change, Comparison, compare, is_same
from service.ci.drift_figures import FACTOR
from service.ci.drift_words import at_own_value, circumstances, headline, other_training, statement
from service.ci.lock import Lock, LockCorruptError, format_lock, parse_lock
from service.ci.probed import Probed, probed
from tuner.evidence import Features, NormSketch, Reference, SeedNorms
from tuner.spec import MAX_SEEDS, ClipSetting, StudySpec

PATH = Path("cliptune.lock.json")
PER_SEED = 34
FEATURES = Features(
    model_signature="0123456789abcdef",
    num_parameters=1000,
    num_tensors=4,
    optimizer="sgd",
    learning_rate=0.1,
    batch_size=64,
    precision="fp32",
)


def seeds_of(number: int, *, first: int, spread: float = 0.05, within: float = 0.3) -> list[list[float]]:
    """Log-normal norms around 1; seeds lie ``spread`` apart."""
    chance = random.Random(first)
    return [
        [math.exp(centre + chance.gauss(0, within)) for _ in range(PER_SEED)]
        for centre in [chance.gauss(0, spread) for _ in range(number)]
    ]


def sketch(norms: Sequence[float]) -> NormSketch:
    found = NormSketch.of(norms)
    assert found is not None
    return found


def reference_of(seeds: Sequence[Sequence[float]], factor: float = 1.0) -> Reference:
    """A probe; largest elements are a tenth of the norms."""
    scaled = [[factor * norm for norm in each] for each in seeds]
    everything = [norm for each in scaled for norm in each]
    return Reference(
        l2_norm=sketch(everything),
        max_abs=sketch([norm / 10 for norm in everything]),
        num_batches=len(everything),
        features=FEATURES,
        by_seed=tuple(
            SeedNorms(l2_norm=sketch(each), max_abs=sketch([norm / 10 for norm in each])) for each in scaled
        ),
    )


def then_of(seeds: Sequence[Sequence[float]]) -> Probed:
    found = probed(asdict(reference_of(seeds)), StudySpec(workload="w", num_seeds=len(seeds)).to_json())
    assert found is not None
    return found


THEN = then_of(seeds_of(3, first=1))
NOW = seeds_of(8, first=2)


def found(setting: str, factor: float = 1.0, *, then: Probed = THEN, **spread: float) -> Comparison:
    now = seeds_of(8, first=2, **spread) if spread else NOW
    return compare(then, reference_of(now, factor), ClipSetting.parse(setting))


# ---- what changed ----


@pytest.mark.parametrize(
    ("setting", "factor", "expected"),
    [
        ("global_norm:1", 1.0, Change.UNCHANGED),
        ("global_norm:0.8", 1.7, Change.ENGAGES_MORE),  # Three in four were above it, nearly all are now.
        ("global_norm:1", 0.3, Change.NO_LONGER_ENGAGES),
        ("global_norm:1", 0.7, Change.ENGAGES_LESS),
        ("global_norm:1.5", 3.0, Change.CLIPS_FAR_MORE),
        ("global_norm:0.1", 3.0, Change.CLIPS_FAR_MORE),  # Every gradient is above it, three times as far.
        ("global_norm:0.1", 1.8, Change.ENGAGES_MORE),
        ("global_norm:0.1", 0.5, Change.ENGAGES_LESS),
        ("global_norm:0.1", 1.2, Change.UNCHANGED),
        ("global_norm:50", 3.0, Change.NORMS_GREW),
        ("global_norm:50", 0.3, Change.NORMS_SHRANK),
        ("global_norm:50", 1.0, Change.UNCHANGED),
        ("value:0.1", 1.0, Change.UNCHANGED),
        ("value:0.1", 0.3, Change.NO_LONGER_ENGAGES),
        ("global_norm_inf:0.15", 3.0, Change.CLIPS_FAR_MORE),
        ("none", 1.0, Change.UNCHANGED),
        ("none", 2.0, Change.NORMS_GREW),
        ("zclip:2.5", 0.5, Change.NORMS_SHRANK),
        ("per_tensor_norm:1", 2.0, Change.NORMS_GREW),
    ],
)
def test_change_is_named(setting: str, factor: float, expected: Change) -> None:
    assert found(setting, factor).change is expected


def test_only_what_is_settled_is_a_drift() -> None:
    assert {each for each in Change if replace(found("none"), change=each).has_drifted} == set(Change) - {
        Change.UNCHANGED,
        Change.UNSETTLED,
    }


def test_seeds_that_lie_far_apart_leave_a_change_open() -> None:
    close, apart = found("none", 2.0), found("none", 2.0, spread=0.8)
    assert (close.change, apart.change) == (Change.NORMS_GREW, Change.UNSETTLED)
    assert apart.ratios[0].low < 1 < apart.ratios[0].high


def test_narrow_norms_whose_share_swings_by_chance_are_no_question() -> None:
    narrow = then_of(seeds_of(3, first=1, spread=0.04, within=0.01))
    swung = found("global_norm:1", then=narrow, spread=0.04, within=0.01)
    assert swung.shares is not None and swung.shares.matters and not swung.shares.is_settled
    assert swung.change is Change.UNCHANGED


def test_a_rare_engagement_that_ends_takes_many_gradients_to_see() -> None:
    """6 % of 102 gradients against none of 272: too few if seeds are worth little more than one gradient each."""
    rare = sorted(norm for seed in seeds_of(3, first=1) for norm in seed)[-6]
    shares = found(f"global_norm:{rare}", 0.9).shares
    assert shares is not None and shares.then > 0
    lone = replace(reference_of(NOW, 0.5), by_seed=reference_of(NOW, 0.5).by_seed[:1])
    assert compare(THEN, lone, ClipSetting.parse(f"global_norm:{rare}")).change is Change.UNSETTLED


def test_independent_gradients_are_between_seeds_and_gradients() -> None:
    tied = found("none", spread=2.0, within=0.01)
    free = found("none", spread=0.0, within=0.5)
    assert tied.num_independent == pytest.approx((3, 8), rel=0.01)
    assert free.num_independent[0] > 30 and free.num_independent[1] > 80
    assert free.num_batches == (102, 272)


def test_a_seed_without_a_gradient_leaves_the_ratio_open() -> None:
    now = reference_of(NOW, 3.0)
    silent = replace(now.by_seed[0], l2_norm=replace(now.by_seed[0].l2_norm, median=0.0))
    seen = compare(THEN, replace(now, by_seed=(silent, *now.by_seed[1:])), ClipSetting.parse("none"))
    median, q90 = seen.ratios
    assert (median.low, median.high) == (0.0, math.inf) and q90.is_settled
    assert seen.change is Change.NORMS_GREW


def test_seed_whose_gradients_are_all_zero_passes_no_threshold() -> None:
    now = reference_of([[0.0] * PER_SEED, *NOW[1:]])
    for setting in ("global_norm:1", "value:0.1"):
        assert compare(THEN, now, ClipSetting.parse(setting)).shares is not None


@pytest.mark.parametrize("setting", ["none", "value:0.03"])
def test_median_that_jumps_between_two_sizes_is_chance(setting: str) -> None:
    """Half of the gradients are twice as large as the others, a little less of them then and a little more now."""
    then = then_of([[0.2] * 18 + [0.4] * 16 for _ in range(3)])
    now = [[0.2] * (17 + swing) + [0.4] * (17 - swing) for swing in [-4, 3] * 15 + [-4, -4]]
    seen = compare(then, reference_of(now), ClipSetting.parse(setting))
    assert seen.ratios[0].value == pytest.approx(2.0) and not seen.ratios[0].is_settled
    assert not seen.has_drifted


def test_seeds_that_lie_beyond_all_numbers_apart_leave_a_change_open() -> None:
    """Student's bound for two seeds is 212."""
    now = reference_of([NOW[0], [1e6 * norm for norm in NOW[1]]])
    assert compare(THEN, now, ClipSetting.parse("none")).change is Change.UNSETTLED


def test_gradients_that_appear_where_there_were_none_are_open() -> None:
    silent = replace(THEN, max_abs=replace(THEN.max_abs, median=0.0, q10=0.0, min=0.0, q01=0.0))  # type: ignore[type-var]
    median = compare(silent, reference_of(NOW), ClipSetting.parse("value:0.1")).ratios[0]
    assert median.value == math.inf and median.matters and not median.is_settled
    nothing = replace(median, now=0.0)
    assert nothing.value == 1.0


def test_probe_of_a_single_seed_settles_nothing() -> None:
    alone = reference_of(NOW[:1], 5.0)
    assert compare(THEN, alone, ClipSetting.parse("global_norm:1")).change is Change.UNSETTLED
    assert compare(THEN, replace(alone, by_seed=()), ClipSetting.parse("none")).change is Change.UNSETTLED


def test_elements_are_compared_with_elements_where_they_were_measured() -> None:
    assert found("value:0.1").ratios[0].then == pytest.approx(found("none").ratios[0].then / 10)
    norms_alone = found("value:0.1", 3.0, then=replace(THEN, max_abs=None))
    assert (norms_alone.change, norms_alone.shares) == (Change.NORMS_GREW, None)
    assert headline(norms_alone) == "the gradient norms are larger than they were"
    assert "its number is of absolute element of the gradient, which the probes did not count" in statement(
        norms_alone
    )


@given(exponent=st.integers(-8, 8), factor=st.sampled_from([0.3, 0.9, 1.0, 2.5]))
def test_units_do_not_matter(exponent: int, factor: float) -> None:
    """A loss in other units scales norms and thresholds alike."""
    unit = 2.0**exponent
    then = then_of([[unit * norm for norm in seed] for seed in seeds_of(3, first=1)])
    scaled = found(f"global_norm:{unit}", factor * unit, then=then)
    assert scaled.change is found("global_norm:1", factor).change
    assert scaled.ratios[0].value == pytest.approx(found("none", factor).ratios[0].value)


@given(factor=st.floats(1.0, 1e6), setting=st.sampled_from(["none", "global_norm:1", "value:0.01"]))
def test_larger_norms_never_engage_less(factor: float, setting: str) -> None:
    change = found(setting, factor).change
    assert change in (
        Change.UNCHANGED,
        Change.UNSETTLED,
        Change.ENGAGES_MORE,
        Change.CLIPS_FAR_MORE,
        Change.NORMS_GREW,
    )
    assert found(setting, factor).has_drifted or factor < 2 * FACTOR


# ---- the study's own probe, run again ----


def test_repeat_within_a_percent_is_the_same() -> None:
    seeds = seeds_of(3, first=1)
    assert is_same(THEN, reference_of(seeds))
    assert is_same(THEN, reference_of(seeds, 1.005))
    assert not is_same(THEN, reference_of(seeds, 1.02))
    assert not is_same(THEN, replace(reference_of(seeds), max_abs=None))


def test_repeat_of_an_earlier_version_is_compared_by_what_it_recorded() -> None:
    old = replace(THEN, l2_norm=replace(THEN.l2_norm, q10=None), max_abs=None)
    assert is_same(old, reference_of(seeds_of(3, first=1)))


def test_repeat_leaves_nothing_to_chance() -> None:
    again = reference_of(seeds_of(3, first=1))
    seen = compare(THEN, again, ClipSetting.parse("global_norm:1"), is_repeat=True)
    assert seen.change is Change.UNCHANGED and seen.shares is not None
    assert [(each.low, each.high) for each in seen.ratios] == [(1.0, 1.0), (1.0, 1.0)]
    assert seen.shares.margin == 0
    told = statement(seen)
    assert "run again and gave the same norms within 1%" in told and "interval" not in told


# ---- words ----


@pytest.mark.parametrize(
    ("setting", "factor", "says"),
    [
        ("global_norm:1", 1.0, "global_norm:1 still engages as it did"),
        ("global_norm:1", 0.3, "global_norm:1 no longer engages"),
        ("global_norm:1", 0.7, "global_norm:1 engages less than it did"),
        ("global_norm:0.1", 1.8, "global_norm:0.1 engages more than it did"),
        ("global_norm:1.5", 3.0, "global_norm:1.5 clips far more than it did"),
        ("global_norm:50", 3.0, "the gradient norms are larger than they were"),
        ("value:5", 0.3, "the largest gradient elements are smaller than they were"),
        ("none", 1.0, "the gradient norms are as they were"),
    ],
)
def test_headline_names_the_change(setting: str, factor: float, says: str) -> None:
    assert headline(found(setting, factor)) == says


def test_figures_stand_with_their_uncertainty() -> None:
    seen = found("global_norm:1", 0.3)
    told = statement(seen)
    assert "gradient norms before clipping, at initial weights: " in told
    assert seen.shares is not None
    assert f"{seen.shares.then:.0%} were above 1 then and 0% are now (difference -" in told
    median = seen.ratios[0]
    interval = f"times {median.value:.3g} (99.7% interval {median.low:.3g} to {median.high:.3g})"
    assert f"median {median.then:.3g} then and {median.now:.3g} now, {interval}" in told
    assert "102 gradients of 3 seeds then were worth about " in told
    assert "272 gradients of 8 seeds now are worth about " in told
    assert told.isascii()


@pytest.mark.parametrize("setting", ["none", "global_norm:1"])
def test_open_question_says_how_to_settle_it(setting: str) -> None:
    told = statement(found(setting, 2.0, spread=0.8))
    assert told.startswith("whether ") and "can't be told: " in told
    assert told.endswith("A probe of more seeds may settle it: --seeds 32 at most.")


def test_open_question_of_the_most_seeds_does_not_ask_for_more() -> None:
    now = reference_of(seeds_of(MAX_SEEDS, first=2, spread=2.0), 2.5)
    seen = compare(THEN, now, ClipSetting.parse("none"))
    assert seen.change is Change.UNSETTLED
    assert statement(seen).endswith("(cliptune submit --seeds) has a probe that tells more.")


def test_what_a_probe_does_not_see_is_said() -> None:
    assert "standard deviations of the gradient norm, which the probes did not count" in statement(
        found("zclip:2.5")
    )
    assert "it can only act later in a training" in statement(found("global_norm:50"))
    alone = compare(THEN, reference_of(NOW[:1]), ClipSetting.parse("none"))
    told = statement(alone)
    assert "a ratio that the seeds leave open" in told and f"fewer than {MIN_SEEDS} seeds" in told


def test_own_value_of_a_config_has_its_shares() -> None:
    assert at_own_value(found("global_norm:50")) == (
        "At the config's own global_norm:50, 0% were above 50 then and 0% are now."
    )
    assert at_own_value(found("autoclip:10")) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_parameters": 2000, "model_signature": "f" * 16}, "parameters 1000 then and 2000 now."),
        (
            {"optimizer": "adam", "learning_rate": None},
            "optimizer sgd then and adam now, learning rate 0.1 then and",
        ),
        (
            {"precision": "bf16", "batch_size": 8},
            "batch size 64 then and 8 now, precision fp32 then and bf16 now.",
        ),
        ({"model_signature": "f" * 16}, "the names or the kinds of its layers differ."),
    ],
)
def test_other_training_is_told(changes: dict[str, Any], says: str) -> None:
    told = other_training(THEN, replace(FEATURES, **changes))
    assert told.startswith("This is not the training that the study tuned: ") and says in told


def test_same_training_is_not_told() -> None:
    assert other_training(THEN, FEATURES) == other_training(THEN, None) == ""
    assert other_training(replace(THEN, features=None), FEATURES) == ""


def test_circumstances_that_differ_are_told() -> None:
    then = replace(THEN, parameters={"hidden": 8, "width": 2, "rate": 0.5}, device="cuda")
    told = circumstances(then, {"hidden": 16, "rate": 0.5, "depth": 3}, "cpu", gone=("width",))
    assert told == (
        "It was probed with hidden=16 where the study had 8, depth=3, which is new. The workload no longer has width. "
        "This probe ran on cpu, the study's on cuda."
    )
    assert circumstances(then, {"hidden": 8, "width": 2, "rate": 0.5}, "cuda") == ""


# ---- what is kept of a study's probe ----


def test_probe_of_a_study_is_read_from_what_the_service_keeps() -> None:
    spec = StudySpec(workload="w", num_seeds=3, num_steps=50, parameters={"hidden": 8}).to_json()
    document = asdict(reference_of(seeds_of(3, first=1))) | {"of_a_newer_version": 1}
    kept = probed(document, spec, device="cpu")
    assert kept is not None
    assert (kept.num_batches, kept.seeds, kept.num_steps) == (102, (0, 1, 2), 50)
    assert (kept.parameters, kept.device, kept.features) == ({"hidden": 8}, "cpu", FEATURES)
    assert kept.l2_norm == THEN.l2_norm


def test_probe_is_read_by_what_it_needs_of_a_spec() -> None:
    """A newer service may ask more of a study, and an older one asked less."""
    document = asdict(reference_of(seeds_of(3, first=1)))
    for spec in ({"workload": "w"}, {"workload": "w", "of_a_newer_version": 1}):
        kept = probed(document, spec)
        assert kept is not None
        assert (kept.num_seeds, kept.num_steps, kept.parameters) == (3, StudySpec.num_steps, {})


def test_norms_on_the_way_of_an_external_training_are_no_probe() -> None:
    spec = StudySpec(workload="w", external=True).to_json()
    assert probed(asdict(reference_of(NOW)), spec) is None


@pytest.mark.parametrize("reference", [None, {}, {"l2_norm": None, "max_abs": None, "num_batches": 0}])
def test_study_without_norms_has_no_probe(reference: dict[str, Any] | None) -> None:
    assert probed(reference, StudySpec(workload="w").to_json()) is None
    assert probed(asdict(reference_of(NOW)), None) is None


@pytest.mark.parametrize(
    "changes", [{}, {"max_abs": None, "features": None}, {"parameters": {"a": 1, "b": "x"}}]
)
def test_lock_keeps_the_probe(findings: Any, changes: dict[str, Any]) -> None:
    stored = replace(findings.recommendation(), probed=replace(THEN, **changes))
    text = format_lock(Lock({}).with_entry("a.yaml", "max_grad_norm", stored))
    read = parse_lock(text.encode(), PATH)
    assert read.find("a.yaml", "max_grad_norm") == stored
    assert format_lock(read) == text


def test_lock_of_an_earlier_version_is_read_and_kept(findings: Any) -> None:
    text = format_lock(Lock({}).with_entry("a.yaml", "max_grad_norm", findings.recommendation()))
    assert "probed" not in text
    assert format_lock(parse_lock(text.encode(), PATH)) == text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"num_batches": 102', '"num_batches": 0', "num_batches must be a whole number >= 1, got 0"),
        (
            '"num_seeds": 3,\n        "num_steps"',
            '"num_seeds": 1000000000,\n        "num_steps"',
            "probed/num_seeds must be a whole number from 1 to 32, got 1000000000",
        ),
        ('"hidden": 8', '"hidden": [8]', "parameters/hidden must be a text, a finite number, true or false"),
        ('"optimizer": "sgd"', '"optimizer": 1', "features/optimizer must be a text, got 1"),
        ('"device": "cpu"', '"engine": "cpu"', "probed/device is missing"),
    ],
)
def test_wrong_field_of_a_kept_probe_is_named(findings: Any, old: str, new: str, says: str) -> None:
    kept = replace(THEN, parameters={"hidden": 8}, device="cpu")
    text = format_lock(
        Lock({}).with_entry("a.yaml", "max_grad_norm", replace(findings.recommendation(), probed=kept))
    )
    assert text.count(old) == 1
    with pytest.raises(LockCorruptError, match=r"/recommendations/.*/probed/") as caught:
        parse_lock(text.replace(old, new).encode(), PATH)
    assert says in str(caught.value)
