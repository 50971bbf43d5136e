"""Every clipping method of `tuner.methods.METHODS` keeps the laws of a clipper; a new one is tested by itself."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tuner.clippers import Clipper, ClipResult, create_clipper, create_lane_clipper
from tuner.clippers.base import batched, l2_norm, unbatched
from tuner.methods import METHODS
from tuner.spec import ClipSetting

ALL = sorted(METHODS)
WITH_THRESHOLD = [name for name in ALL if METHODS[name].has_threshold]
KEEPS_DIRECTION = [name for name in WITH_THRESHOLD if name.startswith("global_norm")]
SHAPES = {"weight": (3, 2), "bias": (3,), "gain": ()}


def gradients(num_lanes: int, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(num_lanes, *shape, generator=generator) for name, shape in SHAPES.items()
    }


def clip(clipper: Clipper, grads: dict[str, Tensor]) -> ClipResult:
    return clipper.clip(grads, clipper.initial_state())


def lane(grads: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    return {name: grad[number : number + 1] for name, grad in grads.items()}


def flat(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([grad.reshape(len(grad), -1) for grad in grads.values()], dim=1)


def assert_bit_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name in one:
        assert one[name].numpy().tobytes() == other[name].numpy().tobytes(), name


thresholds = st.floats(1e-3, 1e3)
seeds = st.integers(0, 2**16)


@pytest.mark.parametrize("method", ALL)
@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_gradients_below_the_threshold_are_bit_identical(method: str, seed: int) -> None:
    grads = gradients(2, seed)
    result = clip(create_lane_clipper(method, [1e6, float("inf")]), grads)
    assert_bit_equal(result.grads, grads)
    assert result.clipped.tolist() == [False, False]
    assert result.scale.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("method", ALL)
@given(seed=seeds, threshold=thresholds, scale=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_norm_never_grows_and_scale_says_by_how_much(
    method: str, seed: int, threshold: float, scale: float
) -> None:
    grads = gradients(3, seed, scale)
    result = clip(create_lane_clipper(method, [threshold] * 3), grads)
    after = l2_norm(result.grads)
    assert (after <= result.norm * (1 + 1e-6)).all()
    torch.testing.assert_close(result.norm, flat(grads).norm(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(result.scale * result.norm, after, rtol=1e-5, atol=0)
    assert ((result.scale > 0) & (result.scale <= 1)).all()


@pytest.mark.parametrize("method", KEEPS_DIRECTION)
@given(seed=seeds, threshold=thresholds)
@settings(max_examples=20, deadline=None)
def test_norm_clipper_keeps_the_direction(method: str, seed: int, threshold: float) -> None:
    grads = gradients(2, seed)
    result = clip(create_lane_clipper(method, [threshold] * 2), grads)
    cosine = torch.nn.functional.cosine_similarity(flat(grads), flat(result.grads), dim=1)
    torch.testing.assert_close(cosine, torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ALL)
@given(seed=seeds, threshold=st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_clipping_twice_is_clipping_once(method: str, seed: int, threshold: float) -> None:
    clipper = create_lane_clipper(method, [threshold])
    once = clip(clipper, gradients(1, seed))
    twice = clip(clipper, once.grads)
    # torch's 1e-6 in the denominator costs up to 1e-6 / threshold more.
    torch.testing.assert_close(twice.grads, once.grads, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("method", ALL)
@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_lane_of_a_batch_gets_what_it_gets_alone(method: str, seed: int) -> None:
    grads, limits = gradients(4, seed), [0.01, 0.3, 1.0, 100.0]
    together = clip(create_lane_clipper(method, limits), grads)
    for number, limit in enumerate(limits):
        alone = clip(create_lane_clipper(method, [limit]), lane(grads, number))
        # Not bit for bit: the order in which a norm is summed may depend on the number of lanes.
        torch.testing.assert_close(alone.grads, lane(together.grads, number), rtol=1e-6, atol=0)
        assert alone.clipped[0] == together.clipped[number]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
@pytest.mark.parametrize("method", ALL)
def test_non_finite_lane_comes_back_unscaled_and_touches_no_other(method: str, bad: float) -> None:
    clean = gradients(3, seed=5)
    clipper = create_lane_clipper(method, [0.1] * 3)
    expected = clip(clipper, clean)
    broken = {name: grad.clone() for name, grad in clean.items()}
    broken["weight"][1, 0, 0] = bad  # 3e38 is finite, but its square overflows
    result = clip(clipper, broken)
    assert result.finite.tolist() == [True, False, True]
    assert not result.clipped[1]
    assert result.scale[1] == 1
    assert_bit_equal(lane(result.grads, 1), lane(broken, 1))
    for number in (0, 2):
        assert_bit_equal(lane(result.grads, number), lane(expected.grads, number))


@pytest.mark.parametrize("method", ALL)
def test_state_survives_a_checkpoint(method: str) -> None:
    clipper = create_lane_clipper(method, [0.5, 5.0])
    state = clip(clipper, gradients(2, seed=1)).state
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    restored = torch.load(file, weights_only=True)
    for number in range(2, 5):
        one = clipper.clip(gradients(2, number), state)
        other = clipper.clip(gradients(2, number), restored)
        assert_bit_equal(one.grads, other.grads)
        state, restored = one.state, other.state


@pytest.mark.parametrize("method", ALL)
def test_input_is_not_modified_and_state_has_the_lane_axis(method: str) -> None:
    grads = gradients(2, seed=1, scale=100)
    copies = {name: grad.clone() for name, grad in grads.items()}
    clipper = create_lane_clipper(method, [0.5, 0.5])
    result = clip(clipper, grads)
    assert_bit_equal(grads, copies)
    assert all(len(each) == 2 for each in result.state.values())


@pytest.mark.parametrize("method", ALL)
def test_wrong_number_of_lanes_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="there are 3 thresholds"):
        clip(create_lane_clipper(method, [1.0] * 3), gradients(2, seed=0))


@pytest.mark.parametrize("method", ALL)
def test_no_gradient_at_all_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="no gradient to clip"):
        clip(create_lane_clipper(method, [1.0]), {})


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_type_of_the_gradients_is_kept(method: str, dtype: torch.dtype) -> None:
    grads = {name: grad.to(dtype) for name, grad in gradients(2, seed=0).items()}
    result = clip(create_lane_clipper(method, [0.1, 0.2]), grads)
    assert {grad.dtype for grad in result.grads.values()} == {dtype}


def test_thresholds_without_a_lane_axis_are_refused() -> None:
    from tuner.clippers import GlobalNormClipper

    with pytest.raises(ValueError, match=r"thresholds must have shape \(lanes,\), got \(\)"):
        GlobalNormClipper(torch.tensor(1.0))


TORCH = {
    "global_norm": lambda parameters, limit: torch.nn.utils.clip_grad_norm_(parameters, limit),
    "global_norm_inf": lambda parameters, limit: torch.nn.utils.clip_grad_norm_(
        parameters, limit, norm_type=float("inf")
    ),
    "value": lambda parameters, limit: torch.nn.utils.clip_grad_value_(parameters, limit),
    "none": lambda parameters, limit: None,
}


@pytest.mark.parametrize("method", ALL)
@given(seed=seeds, threshold=st.floats(1e-5, 1e3), scale=st.floats(1e-5, 1e3))
@settings(max_examples=40, deadline=None)
def test_one_lane_equals_pytorch(method: str, seed: int, threshold: float, scale: float) -> None:
    grads = unbatched(gradients(1, seed, scale))
    parameters = []
    for grad in grads.values():
        parameter = torch.nn.Parameter(torch.zeros_like(grad))
        parameter.grad = grad.clone()
        parameters.append(parameter)
    TORCH[method](parameters, threshold)
    setting = ClipSetting(method=method, threshold=threshold if METHODS[method].has_threshold else None)
    ours = unbatched(clip(create_clipper(setting), batched(grads)).grads)
    for parameter, grad in zip(parameters, ours.values(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", WITH_THRESHOLD)
def test_clipped_is_told_exactly_at_the_border(method: str) -> None:
    # Norm and largest element are 0.5. PyTorch's coefficient is below 1 exactly if 0.5 + 1e-6 > threshold.
    grads = {"weight": torch.full((4, 1), 0.5)}
    result = clip(create_lane_clipper(method, [0.499, 0.5, 0.5 + 5e-7, 0.50001]), grads)
    expected = {"value": [True, False, False, False]}.get(method, [True, True, True, False])
    assert result.clipped.tolist() == expected
