"""The trace: exact counts, bounded memory, nothing after the first step that is not live, any cut the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tuner.evidence import LaneRecord, LossSketch, Phase
from tuner.records import MAX_POINTS, LossCurve
from tuner.training.trace import CAPACITY, StepRecords, Trace

NAN, INF = float("nan"), float("inf")


def steps(norm: Any, **given: Any) -> StepRecords:
    """N steps from lists or tensors, one column per lane, or one list for a single lane."""

    def shaped(values: Any) -> Tensor:
        tensor = torch.as_tensor(values)
        return tensor[:, None] if tensor.ndim == 1 else tensor

    norms = shaped(norm)
    scale = shaped(given.get("scale", torch.ones(norms.shape)))
    loss = shaped(given.get("loss", torch.ones(norms.shape)))
    live = shaped(given.get("live", norms.isfinite() & loss.isfinite()))
    return StepRecords(
        loss=loss,
        norm=norms,
        scale=scale,
        clipped=shaped(given.get("clipped", scale < 1)),
        live=live,
        applied=shaped(given.get("applied", live)),
    )


def recorded(records: StepRecords, num_steps: int | None = None, **options: Any) -> Trace:
    trace = Trace(records.live.shape[1], num_steps or len(records.live), "cpu", **options)
    trace.fold(records)
    return trace


def only(trace: Trace) -> LaneRecord:
    (lane,) = trace.read()
    return lane


@st.composite
def trainings(draw: st.DrawFn) -> StepRecords:
    """Random steps of a few lanes: some diverge, some overflow and are forgiven, some skip."""
    num_steps, num_lanes = draw(st.integers(1, 70)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def random(*, chance: float | None = None) -> Tensor:
        values = torch.rand(num_steps, num_lanes, generator=generator)
        return values if chance is None else values < chance

    live = ~random(chance=draw(st.sampled_from([0.0, 0.02, 0.5])))
    forgiven = random(chance=draw(st.sampled_from([0.0, 0.1])))
    clipped = random(chance=0.4)
    return StepRecords(
        loss=random().where(live | forgiven, NAN),
        norm=random().exp().where(live & ~forgiven, INF),
        scale=random().where(clipped, 1.0),
        clipped=clipped,
        live=live,
        applied=live & ~forgiven & ~random(chance=0.1),
    )


def cut(records: StepRecords, begin: int, end: int) -> StepRecords:
    return StepRecords(*(each[begin:end] for each in records))


def lanes_of(records: StepRecords, rows: Tensor) -> StepRecords:
    return StepRecords(*(each[:, rows] for each in records))


def assert_same(one: Trace, other: Trace) -> None:
    """Bit for bit, on the device and as read."""
    states = one.state(), other.state()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.equal(states[1][name]) or tensor.nan_to_num(-7).equal(states[1][name].nan_to_num(-7)), (
            name
        )
    assert one.read() == other.read()


# ---- known answers ----


def test_counts_and_means_are_exact() -> None:
    one, other = recorded(steps([[1.0, 4.0], [3.0, 2.0]], scale=[[1.0, 0.5], [1.0, 1.0]])).read()
    assert (one.num_steps, one.divergence_step, one.num_non_finite, one.num_skipped) == (2, None, 0, 0)
    assert (one.clip_fraction, one.mean_scale, one.min_scale) == (0.0, 1.0, 1.0)
    assert one.norms is not None
    assert (one.norms.median, one.norms.max, one.norms.min, one.norms.first) == (2.0, 3.0, 1.0, 1.0)
    assert (one.norms.q90, one.norms.q99) == (pytest.approx(2.8), pytest.approx(2.98))
    assert one.spike_ratio == 1.5
    assert one.tail_index is None
    assert (other.clip_fraction, other.mean_scale, other.min_scale) == (0.5, 0.75, 0.5)


def test_clipped_steps_are_dated() -> None:
    lane = only(recorded(steps([1.0] * 6, scale=[1.0, 1.0, 0.5, 1.0, 0.25, 1.0])))
    assert (lane.first_clipped_step, lane.last_clipped_step) == (2, 4)
    never = only(recorded(steps([1.0] * 6)))
    assert (never.first_clipped_step, never.last_clipped_step) == (None, None)


def test_losses_are_summarized() -> None:
    # 12 steps: the late phase is steps 8 to 11.
    losses = [9.0, 1.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 5.0, 6.0, 7.0, 4.0]
    lane = only(recorded(steps([1.0] * 12, loss=losses)))
    assert lane.loss == LossSketch(last=4.0, min=1.0, mean=5.5)


@pytest.mark.parametrize(
    ("num_steps", "wanted"),
    [
        (60, {"warm_up": 3, "early": 17, "mid": 20, "late": 20}),
        (1, {"warm_up": 1}),
        (2, {"warm_up": 1, "mid": 1}),
        (3, {"warm_up": 1, "mid": 1, "late": 1}),
    ],
)
def test_phases_divide_a_full_run(num_steps: int, wanted: dict[str, int]) -> None:
    lane = only(recorded(steps([1.0] * num_steps)))
    assert {str(each.phase): each.num_steps for each in lane.phases} == wanted


def test_a_phase_has_its_own_norms_and_clipping() -> None:
    # 20 steps: warm-up is step 0, early 1 to 6, mid 7 to 13.
    norms = [8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 2.0]
    scale = [0.5, 1.0, 0.25, 0.5, 1.0, 1.0, 1.0, 1.0]
    warm_up, early, mid = only(recorded(steps(norms, scale=scale), 20)).phases
    assert (warm_up.phase, warm_up.clip_fraction, warm_up.mean_scale) == (Phase.WARM_UP, 1.0, 0.5)
    assert (early.clip_fraction, early.mean_scale) == (pytest.approx(1 / 3), pytest.approx(4.75 / 6))
    assert early.norms is not None and mid.norms is not None
    assert (early.norms.min, early.norms.median, early.norms.max) == (1.0, 3.5, 6.0)
    assert (early.norms.q01, early.norms.q10) == (pytest.approx(1.05), pytest.approx(1.5))
    assert (mid.num_steps, mid.norms.median) == (1, 2.0)


def test_steps_beyond_a_full_run_are_late() -> None:
    lane = only(recorded(steps([1.0] * 30), 10))
    assert [each.num_steps for each in lane.phases] == [1, 3, 3, 23]


def test_the_curve_of_a_short_run_is_its_losses() -> None:
    losses = [9.0, 1.5, 0.25, 7.125]
    lane = only(recorded(steps([1.0] * 4, loss=losses)))
    assert lane.curve == LossCurve(stride=1, losses=(9.0, 1.5, 0.25, 7.125))
    assert lane.curve.points(lane.num_steps) == ((0.0, 9.0), (1.0, 1.5), (2.0, 0.25), (3.0, 7.125))


def test_the_curve_of_a_longer_run_has_the_mean_of_each_stretch() -> None:
    # 130 steps in at most 64 stretches: three steps each, one in the last.
    lane = only(recorded(steps([1.0] * 130, loss=[float(index) for index in range(130)])))
    assert lane.curve == LossCurve(stride=3, losses=(*(3.0 * index + 1 for index in range(43)), 129.0))
    assert lane.curve.points(130)[-2:] == ((127.0, 127.0), (129.0, 129.0))


def test_the_curve_of_a_long_run_rests_on_the_steps_kept() -> None:
    trace = recorded(steps([1.0] * 1000, loss=[float(index) for index in range(1000)]), capacity=8)
    curve = only(trace).curve
    assert curve == LossCurve(stride=128, losses=tuple(128.0 * index for index in range(8)))


def test_the_curve_of_a_diverged_lane_ends_with_it() -> None:
    losses = torch.ones(300, 2)
    losses[5:, 0] = NAN
    diverged, sound = recorded(steps(torch.ones(300, 2), loss=losses)).read()
    assert diverged.curve == LossCurve(stride=1, losses=(1.0,) * 5)
    assert sound.curve == LossCurve(stride=5, losses=(1.0,) * 60)


# ---- steps that are not like the others ----


@pytest.mark.parametrize(("norm", "loss"), [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, INF)])
def test_first_step_that_is_not_live_ends_the_lane_and_only_that_one(norm: float, loss: float) -> None:
    norms, losses = torch.ones(5, 2), torch.ones(5, 2)
    norms[2, 0], losses[2, 0] = norm, loss
    norms[3:, 0], losses[3:, 0] = 1e6, 1e-6  # comes back to life in vain
    trace = recorded(steps(norms, loss=losses))
    diverged, sound = trace.read()
    assert trace.live.tolist() == [False, True]
    assert (diverged.num_steps, diverged.divergence_step, diverged.num_non_finite) == (2, 2, 1)
    assert diverged.norms is not None and diverged.norms.max == 1.0
    assert diverged.loss == LossSketch(last=1.0, min=1.0, mean=1.0)
    assert sound == only(recorded(steps([1.0] * 5)))


def test_lane_that_diverges_at_once_has_no_figures() -> None:
    assert only(recorded(steps([NAN, 1.0], clipped=[True, True], loss=[NAN, 1.0]))) == LaneRecord(
        num_steps=0, divergence_step=0, clip_fraction=0.0, mean_scale=1.0, norms=None, num_non_finite=1
    )


def test_a_trace_without_steps_can_be_read() -> None:
    trace = Trace(1, 10, "cpu")
    trace.fold(steps(torch.ones(0, 1)))
    assert only(trace) == LaneRecord(
        num_steps=0, divergence_step=None, clip_fraction=0.0, mean_scale=1.0, norms=None, num_non_finite=0
    )


def test_forgiven_overflow_is_a_step_without_a_norm() -> None:
    records = steps(
        [INF, 2.0, NAN, 4.0],
        loss=[1.0, 2.0, INF, 3.0],
        scale=[1.0, 0.5, NAN, 1.0],
        live=[True] * 4,
        applied=[False, True, False, True],
    )
    lane = only(recorded(records))
    assert (lane.num_steps, lane.num_skipped, lane.num_non_finite) == (4, 2, 2)
    assert (lane.clip_fraction, lane.mean_scale, lane.min_scale) == (0.25, 0.75, 0.5)
    assert lane.norms is not None and (lane.norms.median, lane.norms.first) == (3.0, None)
    assert lane.loss == LossSketch(last=3.0, min=1.0, mean=3.0)
    assert lane.curve == LossCurve(stride=1, losses=(1.0, 2.0, None, 3.0))
    assert lane.histogram is not None and sum(lane.histogram.counts) == 2


def test_skipped_steps_are_taken() -> None:
    lane = only(
        recorded(steps([1.0, 9.0, 1.0, 1.0], scale=[1.0, 0.0, 1.0, 1.0], applied=[True, False, True, True]))
    )
    assert (lane.num_steps, lane.num_skipped, lane.clip_fraction, lane.min_scale) == (4, 1, 0.25, 0.0)


def test_zero_norms_have_no_spike_ratio_and_no_ratio() -> None:
    lane = only(recorded(steps([0.0] * 200, scale=[NAN] * 200)))
    assert (lane.spike_ratio, lane.tail_index, lane.mean_scale) == (None, None, 1.0)
    assert lane.norms is not None and lane.norms.log_mean is None
    assert lane.histogram is None


# ---- laws ----


@settings(max_examples=40, deadline=None)
@given(records=trainings(), size=st.sampled_from([1, 7]), capacity=st.sampled_from([2, 8, 64]))
def test_any_cut_gives_the_same(records: StepRecords, size: int, capacity: int) -> None:
    num_steps = len(records.live)
    whole = recorded(records, capacity=capacity)
    parts = Trace(records.live.shape[1], num_steps, "cpu", capacity=capacity)
    for begin in range(0, num_steps, size):
        parts.fold(cut(records, begin, begin + size))
    assert_same(whole, parts)


@settings(max_examples=40, deadline=None)
@given(records=trainings(), capacity=st.sampled_from([2, 8, 64, 128]))
def test_curve_and_histogram_tell_of_every_kept_step(records: StepRecords, capacity: int) -> None:
    trace = recorded(records, capacity=capacity)
    state = trace.state()
    for lane, norms, losses in zip(trace.read(), state["norms"], state["losses"], strict=True):
        histogram, curve = lane.histogram, lane.curve
        counted = 0 if histogram is None else sum(histogram.counts) + histogram.num_zero
        assert counted == int(norms.isfinite().sum())
        if histogram is not None:
            assert lane.norms is not None and lane.norms.min is not None
            finite = norms[norms.isfinite()]
            assert histogram.low <= float(finite.min()) and float(finite.max()) <= histogram.high
        kept = losses[losses.isfinite()].tolist()
        assert (curve is not None) == bool(kept)
        if curve is not None:
            assert len(curve.losses) <= MAX_POINTS
            assert (len(curve.losses) - 1) * curve.stride < lane.num_steps <= len(curve.losses) * curve.stride
            told = [each for each in curve.losses if each is not None]
            assert min(kept) * (1 - 1e-5) <= min(told) and max(told) <= max(kept) * (1 + 1e-5)


@settings(max_examples=25, deadline=None)
@given(records=trainings(), data=st.data())
def test_lanes_do_not_depend_on_who_is_beside_them(records: StepRecords, data: st.DataObject) -> None:
    num_steps, num_lanes = records.live.shape
    chosen = data.draw(st.lists(st.integers(0, num_lanes - 1), min_size=1, max_size=6))
    rows, middle = torch.tensor(chosen), num_steps // 2
    trace = recorded(cut(records, 0, middle), num_steps, capacity=16).select(rows)
    trace.fold(lanes_of(cut(records, middle, num_steps), rows))
    assert_same(trace, recorded(lanes_of(records, rows), capacity=16))
    alone = [recorded(lanes_of(records, row), capacity=16) for row in rows.split(1)]
    assert_same(trace, Trace.concat(alone))


@settings(max_examples=25, deadline=None)
@given(records=trainings(), data=st.data())
def test_a_restored_trace_goes_on_bit_for_bit(records: StepRecords, data: st.DataObject) -> None:
    num_steps = len(records.live)
    middle = data.draw(st.integers(0, num_steps))
    trace = recorded(cut(records, 0, middle), num_steps, capacity=8)
    state = trace.state()
    trace.fold(cut(records, middle, num_steps))
    for _ in range(2):  # the state is copied: what goes on does not change it
        restored = Trace.restore(num_steps, state)
        restored.fold(cut(records, middle, num_steps))
        assert_same(trace, restored)


def test_a_long_run_is_bounded_and_close_to_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    norms = torch.randn(50_000, 1, generator=generator).exp()
    trace = Trace(1, 50_000, "cpu", capacity=4096)
    for part in norms.split(999):
        trace.fold(steps(part))
    assert trace.state()["norms"].shape == trace.state()["losses"].shape == (1, 4096)
    lane = only(trace)
    assert lane.num_steps == 50_000 and lane.norms is not None
    assert (lane.norms.max, lane.norms.min) == (float(norms.max()), float(norms.min()))
    # exp of a standard normal: the logarithm's quantiles are known. 3125 norms are kept.
    assert lane.norms.log_mean == pytest.approx(0.0, abs=0.06)
    assert lane.norms.log_std == pytest.approx(1.0, abs=0.04)
    for name, quantile in (("q01", 0.01), ("q10", 0.1), ("median", 0.5), ("q90", 0.9), ("q99", 0.99)):
        exact = torch.quantile(norms, quantile).log()
        assert torch.tensor(getattr(lane.norms, name)).log() == pytest.approx(float(exact), abs=0.2), name
    assert sum(each.num_steps for each in lane.phases) == 50_000


def test_the_kept_steps_are_evenly_spaced_from_the_first() -> None:
    trace = recorded(steps(torch.arange(1000.0)), capacity=8)
    # 1000 steps at capacity 8: the stride doubles to 128, and steps 0, 128, ..., 896 are kept.
    assert trace.state()["norms"].tolist() == [[128.0 * index for index in range(8)]]


def test_a_short_run_holds_no_more_than_it_needs() -> None:
    assert Trace(3, 100, "cpu").state()["norms"].shape == (3, 128)
    assert Trace(3, 10**6, "cpu").state()["norms"].shape == (3, CAPACITY)


def test_nan_in_a_lane_touches_no_other() -> None:
    sound = torch.rand(40, 1)
    with_nan = torch.cat([sound, torch.full((40, 1), NAN), sound], dim=1)
    records = steps(
        with_nan, loss=with_nan, scale=with_nan, clipped=with_nan > 0.5, live=torch.ones(40, 3) > 0
    )
    first, _, last = recorded(records).read()
    assert first == last == only(recorded(steps(sound, loss=sound, scale=sound, clipped=sound > 0.5)))


class NoReading(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select"), name
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("device", ["cpu", "meta"])  # a meta tensor has no values that could be read
def test_folding_reads_nothing_back(device: str) -> None:
    trace = Trace(2, 100, device, capacity=8)
    records = StepRecords(*(each.to(device) for each in steps(torch.rand(100, 2))))
    with NoReading():
        for begin, end in pairwise((0, 1, 8, 9, 100)):
            trace.fold(cut(records, begin, end))
        trace.select(torch.tensor([1], device=device))
        Trace.concat([trace, trace])
        trace.state()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReading():
        bool(trace.live.all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_folding_never_waits_for_the_gpu() -> None:
    records = steps(torch.rand(100, 2))
    on_device = StepRecords(*(each.cuda() for each in records))
    trace, rows = Trace(2, 100, "cuda", capacity=8), torch.tensor([1, 0], device="cuda")
    parts = [cut(on_device, begin, end) for begin, end in pairwise((0, 1, 8, 9, 100))]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for part in parts:
            trace.fold(part)
        flipped = Trace.concat([trace]).select(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert flipped.read()[::-1] == trace.read()
    state = {name: each.cpu() for name, each in trace.state().items()}
    assert_same(Trace.restore(100, state), recorded(records, capacity=8))


def test_traces_at_different_steps_do_not_join() -> None:
    with pytest.raises(ValueError, match="traces must agree"):
        Trace.concat([Trace(1, 4, "cpu"), recorded(steps([1.0]), 4)])


@pytest.mark.parametrize(("num_steps", "capacity"), [(0, 8), (10, 1), (10, 12)])
def test_bounds_are_checked(num_steps: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Trace(1, num_steps, "cpu", capacity=capacity)
