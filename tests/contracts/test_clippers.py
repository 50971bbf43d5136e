"""Every clipping method of `tuner.methods.METHODS` keeps the laws of a clipper; a new one is tested by itself.

A method's thresholds are taken from its search range, so nothing here is to be told of a new method, unless it
changes the direction of a gradient. Most laws are checked after a warm-up that ends every method's own.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tuner.clippers import Clipper, ClipResult, ClipState, clipper_class, create_clipper
from tuner.clippers.plain import PlainClipper
from tuner.lanes import Layout
from tuner.methods import METHODS, OFF
from tuner.norms import l2_norm
from tuner.spec import ClipSetting

ALL = sorted(METHODS)
WITH_THRESHOLD = [name for name in ALL if METHODS[name].has_threshold]
CHANGES_DIRECTION = {"value", "per_tensor_norm", "agc", "adagc"}
KEEPS_DIRECTION = [name for name in ALL if name not in CHANGES_DIRECTION]
LAYOUT = Layout(("weight", "bias", "gain"), ((3, 2), (3,), ()))
STATELESS = [
    name
    for name in ALL
    if not clipper_class(name)(torch.ones(1), LAYOUT).initial_state(torch.zeros(1, LAYOUT.num_parameters))
]
OFF_UNTIL_EXCEEDED = [name for name in ALL if clipper_class(name).is_off_until_exceeded]
#: More steps than any method's own warm-up.
WARMUP = 130
seeds = st.integers(0, 2**16)


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> None:
    torch.set_num_threads(1)


def rows(num_lanes: int, seed: int, scale: float = 1.0) -> Tensor:
    """Gradients with norms around ``scale``."""
    generator = torch.Generator().manual_seed(seed)
    norms = scale * torch.randn(num_lanes, 1, generator=generator).mul(0.5).exp()
    raw = torch.randn(num_lanes, LAYOUT.num_parameters, generator=generator)
    return raw * (norms / raw.norm(dim=1, keepdim=True))


def thresholds_of(method: str) -> list[float]:
    """Low, middle and high in the search range, for a reference norm of 1; three lanes of *off* without a range."""
    known = METHODS[method]
    low = known.kappa_low if known.scale else known.threshold_low
    high = known.kappa_high if known.scale else known.threshold_high
    if low is None or high is None:
        return [math.inf] * 3
    middle = known.at_coordinate(math.sqrt(known.coordinate(low) * known.coordinate(high)))
    return [low, middle, high]


def make(method: str, thresholds: Sequence[float] | None = None, **constants: Any) -> Clipper:
    values = torch.tensor(thresholds_of(method) if thresholds is None else thresholds, dtype=torch.float64)
    return clipper_class(method)(
        values, LAYOUT, reference_norm=constants.pop("reference_norm", 1.0), **constants
    )


def weights_of(num_lanes: int) -> Tensor:
    return rows(num_lanes, seed=77)


def clip(clipper: Clipper, grads: Tensor, state: ClipState, loss: Tensor | None = None) -> ClipResult:
    losses = l2_norm(grads) if loss is None else loss
    return clipper.clip(grads, state, weights=weights_of(len(grads)).to(grads), loss=losses)


def run(
    clipper: Clipper, num_steps: int = WARMUP, first_seed: int = 0, spike: bool = False
) -> list[ClipResult]:
    """Some steps from the start; a spike makes every tenth gradient 20 times as large."""
    state = clipper.initial_state(weights_of(clipper.num_lanes))
    results = []
    for step in range(num_steps):
        scale = 20.0 if spike and step % 10 == 9 else 1.0
        results.append(clip(clipper, rows(clipper.num_lanes, first_seed + step, scale), state))
        state = results[-1].state
    return results


@cache
def warm(method: str) -> tuple[Clipper, ClipState]:
    """A clipper of three lanes behind its warm-up; nobody modifies a state."""
    clipper = make(method)
    return clipper, run(clipper)[-1].state


def assert_bit_equal(one: Tensor, other: Tensor) -> None:
    assert one.dtype == other.dtype
    assert one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def assert_same_state(one: ClipState, other: ClipState, lanes: Sequence[int]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert_bit_equal(one[name][list(lanes)], other[name][list(lanes)])


@pytest.mark.parametrize("method", ALL)
def test_infinite_threshold_never_acts_whatever_other_limits_there_are(method: str) -> None:
    clipper = make(method, [math.inf, math.inf], reference_norm=1e-3)
    for step, result in enumerate(run(clipper, spike=True)):
        assert_bit_equal(result.grads, rows(2, step, 20.0 if step % 10 == 9 else 1.0))
        assert result.scale.tolist() == [1.0, 1.0]
        assert not (result.clipped | result.skipped).any()


@pytest.mark.parametrize("method", ALL)
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_tiny_gradient_is_bit_identical(method: str, seed: int) -> None:
    clipper, state = warm(method)
    grads = rows(3, seed, scale=1e-6)
    result = clip(clipper, grads, state)
    assert_bit_equal(result.grads, grads)
    assert result.scale.tolist() == [1.0] * 3
    assert not (result.clipped | result.skipped).any()


@pytest.mark.parametrize("method", ALL)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_no_element_grows_and_scale_says_by_how_much_the_norm_shrinks(
    method: str, seed: int, scale: float
) -> None:
    clipper, state = warm(method)
    grads = rows(3, seed, scale)
    result = clip(clipper, grads, state)
    assert (result.grads.abs() <= grads.abs() * (1 + 1e-6)).all()
    torch.testing.assert_close(result.norm, grads.norm(dim=1), rtol=1e-5, atol=0)
    kept = ~result.skipped
    torch.testing.assert_close(
        (result.scale * result.norm)[kept], l2_norm(result.grads)[kept], rtol=1e-5, atol=0
    )
    assert ((result.scale > 0) & (result.scale <= 1))[kept].all()
    assert (result.scale[~kept] == 0).all()
    assert result.clipped[~kept].all()


@pytest.mark.parametrize("method", ALL)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
@settings(max_examples=10, deadline=None)
def test_lane_that_is_not_clipped_or_is_skipped_is_bit_identical(
    method: str, seed: int, scale: float
) -> None:
    clipper, state = warm(method)
    grads = rows(3, seed, scale)
    result = clip(clipper, grads, state)
    same = ~result.clipped | result.skipped
    assert_bit_equal(result.grads[same], grads[same])


@pytest.mark.parametrize("method", WITH_THRESHOLD)
def test_method_acts_on_a_spike(method: str) -> None:
    clipper, state = warm(method)
    assert clip(clipper, rows(3, seed=1, scale=1e3), state).clipped.all()


@pytest.mark.parametrize("method", KEEPS_DIRECTION)
@given(seed=seeds, scale=st.floats(1e-2, 1e2))
@settings(max_examples=10, deadline=None)
def test_norm_clipper_keeps_the_direction(method: str, seed: int, scale: float) -> None:
    clipper, state = warm(method)
    grads = rows(3, seed, scale)
    cosine = torch.nn.functional.cosine_similarity(grads, clip(clipper, grads, state).grads, dim=1)
    torch.testing.assert_close(cosine, torch.ones(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", STATELESS)
@given(seed=seeds, scale=st.floats(0.1, 10))
@settings(max_examples=10, deadline=None)
def test_clipping_twice_is_clipping_once_without_a_state(method: str, seed: int, scale: float) -> None:
    clipper = make(method)
    once = clip(clipper, rows(3, seed, scale), {})
    twice = clip(clipper, once.grads, {})
    # torch's 1e-6 in the denominator costs up to 1e-6 / threshold more; a tensor's part of it is smaller still.
    # The lowest threshold tried is 1e-3.
    torch.testing.assert_close(twice.grads, once.grads, rtol=3e-3, atol=1e-7)


@pytest.mark.parametrize("method", ALL)
def test_lane_of_a_batch_gets_what_it_gets_alone(method: str) -> None:
    together = make(method)
    alone = [make(method, [each]) for each in thresholds_of(method)]
    state = together.initial_state(weights_of(3))
    states = [each.initial_state(weights_of(1)) for each in alone]
    weights = weights_of(3)
    for step in range(WARMUP):
        grads = rows(3, step, 20.0 if step % 10 == 9 else 1.0)
        result = together.clip(grads, state, weights=weights, loss=l2_norm(grads))
        state = result.state
        for lane, clipper in enumerate(alone):
            own = grads[lane : lane + 1]
            single = clipper.clip(
                own, states[lane], weights=weights[lane : lane + 1], loss=l2_norm(grads)[lane : lane + 1]
            )
            states[lane] = single.state
            # Not bit for bit: the order in which a norm is summed may depend on the number of lanes.
            torch.testing.assert_close(single.grads[0], result.grads[lane], rtol=1e-5, atol=0)
            assert single.clipped[0] == result.clipped[lane]
            assert single.skipped[0] == result.skipped[lane]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("method", ALL)
def test_non_finite_lane_comes_back_with_its_state_and_touches_no_other(method: str, bad: float) -> None:
    clipper, state = warm(method)
    clean = rows(3, seed=5)
    expected = clip(clipper, clean, state, loss=torch.ones(3))
    broken = clean.clone()
    broken[1, 0] = bad  # 3e38 is finite, but its square overflows
    result = clip(clipper, broken, state, loss=torch.ones(3))
    assert result.finite.tolist() == [True, False, True]
    assert not (result.clipped | result.skipped)[1]
    assert result.scale[1] == 1
    assert_bit_equal(result.grads[1], broken[1])
    assert_same_state(result.state, state, [1])
    assert_bit_equal(result.grads[[0, 2]], expected.grads[[0, 2]])
    assert_same_state(result.state, expected.state, [0, 2])


@pytest.mark.parametrize("method", ALL)
def test_non_finite_first_step_leaves_a_method_as_new(method: str) -> None:
    clipper = make(method)
    state = clipper.initial_state(weights_of(3))
    result = clip(clipper, torch.full_like(rows(3, seed=0), math.nan), state)
    assert_same_state(result.state, state, range(3))


@pytest.mark.parametrize("method", ALL)
def test_state_survives_a_checkpoint(method: str) -> None:
    clipper, state = warm(method)
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    restored: Mapping[str, Tensor] = torch.load(file, weights_only=True)
    for number in range(5):
        grads = rows(3, number, 20.0 if number == 2 else 1.0)
        one, other = clip(clipper, grads, state), clip(clipper, grads, restored)
        assert_bit_equal(one.grads, other.grads)
        assert_same_state(one.state, other.state, range(3))
        state, restored = one.state, other.state


@pytest.mark.parametrize("method", ALL)
def test_nothing_given_is_modified(method: str) -> None:
    clipper, state = warm(method)
    given = {"grads": rows(3, seed=1, scale=100), "weights": weights_of(3), "loss": torch.ones(3), **state}
    copies = {name: each.clone() for name, each in given.items()}
    clipper.clip(given["grads"], state, weights=given["weights"], loss=given["loss"])
    for name, each in given.items():
        assert_bit_equal(each, copies[name])


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_types_and_shapes_are_kept_from_step_to_step(method: str, dtype: torch.dtype) -> None:
    clipper = make(method)
    state = clipper.initial_state(weights_of(3).to(dtype))
    assert all(len(each) == 3 for each in state.values())
    for step in range(3):
        result = clip(clipper, rows(3, step, scale=10).to(dtype), state)
        assert result.grads.dtype == result.norm.dtype == dtype
        assert {each.dtype for each in (result.clipped, result.finite, result.skipped)} == {torch.bool}
        assert {name: (each.shape, each.dtype) for name, each in result.state.items()} == {
            name: (each.shape, each.dtype) for name, each in state.items()
        }
        state = result.state


class NoHostSync(TorchDispatchMode):
    """Refuses whatever reads a value back, or has a shape that depends on one."""

    REFUSED = ("_local_scalar_dense", "item", "nonzero", "unique", "masked_select", "equal", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.lstrip("_").startswith(self.REFUSED) and name not in self.REFUSED, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ALL)
def test_nothing_is_read_back_to_the_host(method: str) -> None:
    clipper, state = warm(method)
    grads, weights = rows(3, seed=1, scale=100), weights_of(3)
    with NoHostSync():
        clipper.clip(grads, state, weights=weights, loss=torch.ones(3))


def test_the_test_for_host_reads_can_fail() -> None:
    with pytest.raises(AssertionError), NoHostSync():
        torch.ones(1).item()


@pytest.mark.parametrize("method", ALL)
def test_permuting_lanes_permutes_results(method: str) -> None:
    order = [2, 0, 1]
    one, other = make(method), make(method, [thresholds_of(method)[lane] for lane in order])
    state, permuted = one.initial_state(weights_of(3)), other.initial_state(weights_of(3))
    weights = weights_of(3)
    for step in range(WARMUP):
        grads = rows(3, step, 20.0 if step % 10 == 9 else 1.0)
        result = one.clip(grads, state, weights=weights, loss=l2_norm(grads))
        again = other.clip(grads[order], permuted, weights=weights[order], loss=l2_norm(grads)[order])
        torch.testing.assert_close(again.grads, result.grads[order], rtol=1e-5, atol=0)
        state, permuted = result.state, again.state


@pytest.mark.parametrize("method", ALL)
def test_gradients_of_another_shape_are_refused(method: str) -> None:
    clipper = make(method)
    for grads, message in (
        (rows(2, seed=0), "there are 3 thresholds"),
        (torch.zeros(3, 0), "no gradient to clip"),
        (torch.zeros(3, 4), "gradients have 4 columns, but the layout has 10"),
    ):
        with pytest.raises(ValueError, match=message):
            clipper.clip(grads, {}, weights=grads, loss=torch.zeros(len(grads)))


@pytest.mark.parametrize("method", ALL)
def test_thresholds_without_a_lane_axis_and_a_reference_norm_of_zero_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"thresholds must have shape \(lanes,\), got \(\)"):
        clipper_class(method)(torch.tensor(1.0), LAYOUT)
    with pytest.raises(ValueError, match=r"reference_norm must be finite and > 0, got 0.0"):
        make(method, [2.0], reference_norm=0.0)


def per_tensor(parameters: list[nn.Parameter], limit: float) -> None:
    for each in parameters:
        torch.nn.utils.clip_grad_norm_(each, limit / math.sqrt(len(parameters)))


TORCH = {
    "global_norm": lambda parameters, limit: torch.nn.utils.clip_grad_norm_(parameters, limit),
    "global_norm_inf": lambda parameters, limit: torch.nn.utils.clip_grad_norm_(
        parameters, limit, norm_type=float("inf")
    ),
    "per_tensor_norm": per_tensor,
    "value": lambda parameters, limit: torch.nn.utils.clip_grad_value_(parameters, limit),
    "none": lambda parameters, limit: None,
}


@pytest.mark.parametrize("method", TORCH)
@given(seed=seeds, threshold=st.floats(1e-5, 1e3), scale=st.floats(1e-5, 1e3))
@settings(max_examples=30, deadline=None)
def test_one_lane_equals_pytorch(method: str, seed: int, threshold: float, scale: float) -> None:
    grads = rows(1, seed, scale)
    parameters = []
    for view in LAYOUT.views(grads).values():
        parameter = torch.nn.Parameter(torch.zeros_like(view[0]))
        parameter.grad = view[0].clone()
        parameters.append(parameter)
    TORCH[method](parameters, threshold)
    ours = clip(make(method, [threshold]), grads, {}).grads
    theirs = torch.cat([each.grad.reshape(-1) for each in parameters])
    torch.testing.assert_close(ours[0], theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", [name for name in WITH_THRESHOLD if METHODS[name].scale])
def test_clipped_is_told_exactly_at_the_border(method: str) -> None:
    # Norm and largest element are 0.5. PyTorch's coefficient is below 1 exactly if 0.5 + 1e-6 > threshold.
    thresholds = torch.tensor([0.499, 0.5, 0.5 + 5e-7, 0.50001], dtype=torch.float64)
    clipper = clipper_class(method)(thresholds, Layout(("weight",), ((1,),)))
    grads = torch.full((4, 1), 0.5)
    result = clipper.clip(grads, {}, weights=grads, loss=torch.zeros(4))
    expected = {"value": [True, False, False, False]}.get(method, [True, True, True, False])
    assert result.clipped.tolist() == expected


@pytest.mark.parametrize("method", OFF_UNTIL_EXCEEDED)
@given(seed=seeds, scale=st.floats(1e-3, 1e3), bad=st.booleans())
@settings(max_examples=20, deadline=None)
def test_exceeded_is_what_clip_calls_clipped(method: str, seed: int, scale: float, bad: bool) -> None:
    grads = rows(3, seed, scale)
    if bad:
        grads[1, 0] = math.inf
    asked = torch.tensor([*thresholds_of(method), math.inf], dtype=torch.float64)
    exceeded = clipper_class(method).is_exceeded(grads, l2_norm(grads), asked)
    for column, threshold in enumerate(asked.tolist()):
        result = clip(make(method, [threshold] * 3), grads, {})
        assert exceeded[:, column].tolist() == result.clipped.tolist()


@pytest.mark.parametrize("method", [name for name in ALL if name not in OFF_UNTIL_EXCEEDED])
def test_method_that_may_act_at_any_time_has_no_such_test(method: str) -> None:
    with pytest.raises(NotImplementedError):
        clipper_class(method).is_exceeded(rows(1, 0), torch.ones(1), torch.ones(1))


def test_mixed_cohort_equals_the_separate_clippers_bit_for_bit() -> None:
    chosen = [
        ClipSetting(method=method, threshold=threshold)
        for threshold_number in range(2)
        for method in WITH_THRESHOLD
        for threshold in [thresholds_of(method)[threshold_number]]
    ]
    off = [ClipSetting(method=OFF)] * 2
    together = create_clipper([*chosen, *off], LAYOUT, reference_norm=1.0)
    num_lanes = together.num_lanes
    weights = weights_of(num_lanes)
    # Lanes of *off* are the first method's.
    lanes_of = {
        method: [number for number, each in enumerate(chosen) if each.method == method]
        + ([num_lanes - 2, num_lanes - 1] if method == WITH_THRESHOLD[0] else [])
        for method in WITH_THRESHOLD
    }
    separate = {
        method: create_clipper([[*chosen, *off][lane] for lane in lanes], LAYOUT, reference_norm=1.0)
        for method, lanes in lanes_of.items()
    }
    state = together.initial_state(weights)
    states = {method: each.initial_state(weights[lanes_of[method]]) for method, each in separate.items()}
    for step in range(WARMUP):
        grads = rows(num_lanes, step, 20.0 if step % 10 == 9 else 1.0)
        result = together.clip(grads, state, weights=weights, loss=l2_norm(grads))
        state = result.state
        assert_bit_equal(result.grads[-2:], grads[-2:])
        for method, clipper in separate.items():
            lanes = lanes_of[method]
            own = clipper.clip(
                grads[lanes], states[method], weights=weights[lanes], loss=l2_norm(grads)[lanes]
            )
            states[method] = own.state
            assert_bit_equal(result.grads[lanes], own.grads)
            assert_bit_equal(result.skipped[lanes], own.skipped)
            assert_bit_equal(result.scale[lanes].float(), own.scale.float())


@pytest.mark.parametrize("method", ALL)
def test_plain_module_gets_what_a_lane_gets(method: str) -> None:
    module = nn.Linear(2, 3)
    layout = Layout.of(module.named_parameters())
    threshold = None if method == OFF else thresholds_of(method)[1]
    setting = ClipSetting(method=method, threshold=threshold)
    plain = PlainClipper(setting, module, reference_norm=1.0)
    lane = create_clipper([setting], layout, reference_norm=1.0)
    weights = torch.cat([each.detach().reshape(-1) for each in module.parameters()]).unsqueeze(0)
    state = lane.initial_state(weights)
    for step in range(WARMUP):
        grads = rows(1, step, 20.0 if step % 10 == 9 else 1.0)[:, : layout.num_parameters].contiguous()
        for name, each in module.named_parameters():
            each.grad = layout.views(grads)[name][0].clone()
        loss = l2_norm(grads)
        expected = lane.clip(grads, state, weights=weights, loss=loss)
        state = expected.state
        result = plain.clip(loss[0])
        assert bool(result.skipped) == bool(expected.skipped)
        assert_bit_equal(
            torch.cat([each.grad.reshape(-1) for each in module.parameters()]), expected.grads[0]
        )
