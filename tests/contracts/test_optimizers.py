"""Every built-in optimizer keeps the laws of `OptimizerSetting.update`; a new one is tested by adding a case."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tuner.optimizers
from tuner.lanes import Layout
from tuner.optimizers import (
    CustomOptimizer,
    OptimizerSetting,
    OptimizerState,
    adagrad,
    adam,
    adamw,
    cosine,
    muon,
    rmsprop,
    sgd,
    shampoo,
)

CASES: dict[str, OptimizerSetting] = {
    "sgd": sgd(0.1),
    "sgd-decay": sgd(0.1, weight_decay=0.1),
    "sgd-momentum": sgd(0.1, momentum=0.9),
    "sgd-nesterov-decay": sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": adam(0.01),
    "adam-decay": adam(0.01, weight_decay=0.1, betas=(0.3, 0.9)),
    "adam-sign": adam(0.01, betas=(0.0, 0.0), eps=0.0),
    "adamw": adamw(0.01),
    "rmsprop": rmsprop(0.01),
    "rmsprop-full": rmsprop(0.01, alpha=0.9, momentum=0.9, centered=True, weight_decay=0.1),
    "rmsprop-no-eps": rmsprop(0.01, momentum=0.9, eps=0.0),
    "rmsprop-last": rmsprop(0.01, alpha=0.0, momentum=0.5),
    "adagrad": adagrad(0.1),
    "adagrad-full": adagrad(0.1, lr_decay=0.1, initial_accumulator_value=0.1, weight_decay=0.1),
    "muon": muon(0.02),
    "muon-plain": muon(0.02, nesterov=False, weight_decay=0.0, adjust_lr="match_rms_adamw"),
    "muon-last": muon(0.02, momentum=0.0),
    "muon-named": muon(0.02, adamw_names=("head",), adamw_weight_decay=0.1),
    "shampoo": shampoo(0.1),
    "shampoo-full": shampoo(0.1, momentum=0.9, weight_decay=0.1),
    "shampoo-narrow": shampoo(0.1, max_dimension=4),
}
# Couples the decay with the gradient: an infinite weight then reaches its own lane's state.
COUPLED = {"sgd-nesterov-decay", "adam-decay", "rmsprop-full", "adagrad-full"}

LAYOUT = Layout(
    ("gain", "hidden.weight", "hidden.bias", "other.weight", "conv.weight", "head.weight"),
    ((), (3, 4), (3,), (3, 4), (2, 2, 2, 2), (5, 3)),
)
NUM_LANES = 4

every_setting = pytest.mark.parametrize("setting", CASES.values(), ids=CASES.keys())
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def randn(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_LANES, LAYOUT.num_parameters, generator=generator, dtype=dtype)


def step(
    setting: OptimizerSetting,
    weights: Tensor,
    state: OptimizerState,
    grads: Tensor,
    *,
    lr: Tensor | None = None,
    applied: Tensor | None = None,
) -> None:
    """One update with the caller's part of the contract: rows that are not applied are zeros."""
    applied = torch.ones(len(weights), dtype=torch.bool) if applied is None else applied
    lr = torch.full((len(weights),), setting.lr, dtype=torch.float64) if lr is None else lr
    masked = torch.where(applied[:, None], grads, 0.0)
    setting.update(weights, masked, state, layout=LAYOUT, lr=lr, applied=applied)


def train(
    setting: OptimizerSetting, weights: Tensor, seeds: range, lanes: list[int] | None = None
) -> tuple[Tensor, OptimizerState]:
    chosen = list(range(NUM_LANES)) if lanes is None else lanes
    weights = weights[chosen].clone()
    state = setting.initial_state(weights, LAYOUT)
    for seed in seeds:
        step(setting, weights, state, randn(seed, weights.dtype)[chosen])
    return weights, state


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


class NoHostSync(TorchDispatchMode):
    """Raises where a value would be read to the host or a shape would depend on one."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "index")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.FORBIDDEN:
            raise AssertionError(f"{func} reads a value back to the host")
        return func(*args, **kwargs or {})


def test_every_built_in_setting_has_a_case() -> None:
    built_in = {
        each
        for each in vars(tuner.optimizers).values()
        if isinstance(each, type) and issubclass(each, OptimizerSetting)
    }
    assert {type(each) for each in CASES.values()} == built_in - {OptimizerSetting, CustomOptimizer}


@every_setting
def test_lane_of_a_batch_equals_the_lane_alone(setting: OptimizerSetting) -> None:
    together, _ = train(setting, randn(0), range(1, 21))
    alone = torch.cat([train(setting, randn(0), range(1, 21), [lane])[0] for lane in range(NUM_LANES)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@every_setting
def test_permuting_lanes_permutes_results(setting: OptimizerSetting) -> None:
    order = [2, 0, 3, 1]
    straight, _ = train(setting, randn(0), range(1, 6))
    permuted, _ = train(setting, randn(0), range(1, 6), order)
    torch.testing.assert_close(permuted, straight[order], rtol=1e-6, atol=1e-7)


@every_setting
def test_each_lane_has_its_own_rate(setting: OptimizerSetting) -> None:
    rates = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64) * setting.lr
    weights, state = randn(0), setting.initial_state(randn(0), LAYOUT)
    apart = [randn(0) for _ in range(NUM_LANES)]
    apart_states = [setting.initial_state(randn(0), LAYOUT) for _ in range(NUM_LANES)]
    for seed in range(1, 6):
        step(setting, weights, state, randn(seed), lr=rates)
        for each, its_state, rate in zip(apart, apart_states, rates, strict=True):
            step(setting, each, its_state, randn(seed), lr=rate.expand(NUM_LANES))
    for lane, each in enumerate(apart):
        assert bits(weights[lane]) == bits(each[lane])
    assert bits(weights[3]) == bits(randn(0)[3])


@every_setting
def test_rate_may_have_the_type_of_the_weights(setting: OptimizerSetting) -> None:
    weights, state = randn(0), setting.initial_state(randn(0), LAYOUT)
    step(setting, weights, state, randn(1), lr=torch.full((NUM_LANES,), setting.lr))
    torch.testing.assert_close(weights, train(setting, randn(0), range(1, 2))[0], rtol=1e-6, atol=1e-7)


@every_setting
@every_type
@pytest.mark.parametrize("num_before", [0, 1, 7])
def test_lane_that_takes_no_step_keeps_every_bit(
    setting: OptimizerSetting, dtype: torch.dtype, num_before: int
) -> None:
    initial = randn(0, dtype)
    initial[:, ::3] = -0.0
    weights, state = initial.clone(), setting.initial_state(initial, LAYOUT)
    for seed in range(1, num_before + 1):
        grads = randn(seed, dtype)
        # Some weights never get a gradient, of either sign of zero.
        grads[:, :6] = torch.tensor([0.0, -0.0], dtype=dtype).repeat(3)
        step(setting, weights, state, grads)
    before, state_before = weights.clone(), {name: each.clone() for name, each in state.items()}
    applied = torch.tensor([True, False, True, False])
    step(setting, weights, state, randn(100, dtype), applied=applied)
    for lane in (1, 3):
        assert bits(weights[lane]) == bits(before[lane])
        for name, each in state.items():
            assert bits(each[lane]) == bits(state_before[name][lane]), name
    for lane in (0, 2):
        assert (weights[lane] != before[lane]).any()


@every_setting
def test_pause_leaves_no_trace_in_the_steps_after_it(setting: OptimizerSetting) -> None:
    straight, _ = train(setting, randn(0), range(1, 6))
    weights, state = randn(0), setting.initial_state(randn(0), LAYOUT)
    for seed in (1, 2, 3):
        step(setting, weights, state, randn(seed))
    step(setting, weights, state, randn(50), applied=torch.tensor([True, False, True, True]))
    for seed in (4, 5):
        step(setting, weights, state, randn(seed))
    assert bits(weights[1]) == bits(straight[1])


@every_setting
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("is_applied", [True, False])
def test_bad_numbers_of_one_lane_change_no_bit_of_another(
    setting: OptimizerSetting, value: float, is_applied: bool
) -> None:
    expected, expected_state = train(setting, randn(0), range(1, 6))
    weights, state = randn(0), setting.initial_state(randn(0), LAYOUT)
    applied = torch.tensor([True, is_applied, True, True])
    for seed in range(1, 6):
        grads = randn(seed)
        weights[1] = value
        grads[1] = value
        step(setting, weights, state, grads, applied=applied)
    for lane in (0, 2, 3):
        assert bits(weights[lane]) == bits(expected[lane])
        for name, each in state.items():
            assert bits(each[lane]) == bits(expected_state[name][lane]), name


@pytest.mark.parametrize("name", sorted(CASES.keys() - COUPLED))
def test_infinite_weights_that_take_no_step_are_kept(name: str) -> None:
    setting = CASES[name]
    weights, state = train(setting, randn(0), range(1, 4))
    weights[1] = torch.inf
    state_before = {name: each[1].clone() for name, each in state.items()}
    step(setting, weights, state, randn(4), applied=torch.tensor([True, False, True, True]))
    assert (weights[1] == torch.inf).all()
    for name, each in state.items():
        assert bits(each[1]) == bits(state_before[name]), name


@every_setting
@every_type
def test_state_has_lanes_in_front_and_types_are_kept(setting: OptimizerSetting, dtype: torch.dtype) -> None:
    weights, state = train(setting, randn(0, dtype), range(1, 3))
    assert weights.dtype == dtype
    fresh = setting.initial_state(weights, LAYOUT)
    assert state.keys() == fresh.keys()
    for name, each in state.items():
        assert len(each) == NUM_LANES
        assert each.is_contiguous()
        assert each.dtype == (torch.float64 if name == "step" else dtype)
        assert (each.shape, each.dtype) == (fresh[name].shape, fresh[name].dtype)


@every_setting
def test_copied_state_goes_on_as_if_never_interrupted(setting: OptimizerSetting) -> None:
    expected, _ = train(setting, randn(0), range(1, 7))
    weights, state = train(setting, randn(0), range(1, 4))
    weights, state = weights.clone(), {name: each.clone() for name, each in state.items()}
    for seed in range(4, 7):
        step(setting, weights, state, randn(seed))
    assert bits(weights) == bits(expected)


@every_setting
def test_selected_lanes_go_on_alone(setting: OptimizerSetting) -> None:
    expected, _ = train(setting, randn(0), range(1, 7))
    weights, state = train(setting, randn(0), range(1, 4))
    chosen = torch.tensor([3, 1])
    weights, state = weights[chosen], {name: each[chosen] for name, each in state.items()}
    for seed in range(4, 7):
        step(setting, weights, state, randn(seed)[chosen])
    torch.testing.assert_close(weights, expected[chosen], rtol=1e-6, atol=1e-6)


@every_setting
def test_update_stays_in_place_and_reads_nothing_to_the_host(setting: OptimizerSetting) -> None:
    weights, state = train(setting, randn(0), range(1, 3))
    addresses = {name: each.data_ptr() for name, each in state.items()}
    where = weights.data_ptr()
    lr = torch.full((NUM_LANES,), setting.lr, dtype=torch.float64)
    applied = torch.tensor([True, False, True, True])
    grads = torch.where(applied[:, None], randn(3), 0.0)
    with NoHostSync():
        setting.update(weights, grads, state, layout=LAYOUT, lr=lr, applied=applied)
    assert weights.data_ptr() == where
    assert {name: each.data_ptr() for name, each in state.items()} == addresses


@every_setting
def test_update_needs_no_values_at_all(setting: OptimizerSetting) -> None:
    # A meta tensor has none: whatever would copy one to the host raises.
    weights = torch.empty(NUM_LANES, LAYOUT.num_parameters, device="meta")
    state = setting.initial_state(weights, LAYOUT)
    setting.update(
        weights,
        torch.empty_like(weights),
        state,
        layout=LAYOUT,
        lr=torch.empty(NUM_LANES, device="meta", dtype=torch.float64),
        applied=torch.empty(NUM_LANES, device="meta", dtype=torch.bool),
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_setting
def test_captured_graph_replays_the_same_steps(setting: OptimizerSetting) -> None:
    def start() -> tuple[Tensor, OptimizerState]:
        weights = randn(0).cuda()
        return weights, setting.initial_state(weights, LAYOUT)

    lr = torch.full((NUM_LANES,), setting.lr, dtype=torch.float64, device="cuda")
    applied = torch.tensor([True, False, True, True], device="cuda")
    grads = torch.where(applied[:, None], randn(1).cuda(), 0.0)
    eager, eager_state = start()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            setting.update(eager, grads.clone(), eager_state, layout=LAYOUT, lr=lr, applied=applied)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    weights, state = start()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        setting.update(weights, grads.clone(), state, layout=LAYOUT, lr=lr, applied=applied)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(weights.cpu(), eager.cpu(), rtol=1e-5, atol=1e-6)
    assert bits(weights[1].cpu()) == bits(randn(0)[1])


@every_setting
def test_quadratic_is_minimised(setting: OptimizerSetting) -> None:
    weights = randn(0)
    start = weights.square().sum(dim=1)
    state = setting.initial_state(weights, LAYOUT)
    schedule = cosine(300)
    for count in range(300):
        factor = schedule.factor(torch.full((NUM_LANES,), count))
        step(setting, weights, state, weights.clone(), lr=factor * setting.lr)
    assert (weights.square().sum(dim=1) < start).all()


@every_setting
def test_vectors_alone_are_trained_too(setting: OptimizerSetting) -> None:
    layout = Layout(("bias", "gain"), ((3,), ()))
    weights = randn(0)[:, :4].contiguous()
    before = weights.clone()
    state = setting.initial_state(weights, layout)
    grads, lr = randn(1)[:, :4].contiguous(), torch.full((NUM_LANES,), setting.lr)
    setting.update(
        weights, grads, state, layout=layout, lr=lr, applied=torch.ones(NUM_LANES, dtype=torch.bool)
    )
    assert (weights != before).all()
