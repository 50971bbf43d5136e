"""The batched engine on a GPU: plain PyTorch's results, no look at the device in a step, checkpoints, formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from reference.engines import SETTINGS, compare_with_plain_pytorch, train_in_one_block
from reference.training import CLIPS, MODELS, Task
from torch import Tensor
from toys import advanced, assert_close, cohort_of, lanes_of, regression, toy, trained, workload_of

from tuner.training.batched import BatchedEngine
from tuner.training.cohort import Cohort
from tuner.training.engine import EngineState, LaneId
from tuner.training.lane_batch import LaneBatch
from tuner.training.solo import SoloEngine
from tuner.training.tracing import Recorded
from tuner.workloads import AnyWorkload
from tuner.workloads.base import Precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIXED = (
    "none", "global_norm:0.5", "global_norm_inf:0.2", "value:0.05", "per_tensor_norm:0.5", "agc:0.05", "autoclip:50",
    "zclip:2", "adagc:1.1", "norm_growth:1.1", "quantile:0.5", "skip_step:3",
)  # fmt: skip
NUM_STEPS = 200
#: Dropout draws other numbers on a GPU than on a CPU, so these models are compared with the plain CPU run.
WITHOUT_DRAWS = ("mlp", "cnn")


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Products in full single precision, as on the CPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("model", WITHOUT_DRAWS)
def test_lane_of_a_batch_equals_plain_pytorch(model: str, optimizer: str) -> None:
    cohort = cohort_of(*CLIPS, rung_steps=(NUM_STEPS,))
    task = Task(model, torch.float32, SETTINGS[optimizer])
    engine = BatchedEngine(cohort, task, device="cuda", captures=False)
    steps = train_in_one_block(engine, lanes_of(cohort), NUM_STEPS)
    chosen = {LaneId(clip, number % 2): steps[LaneId(clip, number % 2)] for number, clip in enumerate(CLIPS)}
    worst = compare_with_plain_pytorch(
        engine, (model, torch.float32), chosen, optimizer=optimizer, tolerance=1e-4
    )
    print(f"largest deviation {worst:.1e}")


@pytest.mark.parametrize("captures", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("model", MODELS)
def test_batch_equals_single_lanes(model: str, captures: bool) -> None:
    cohort = cohort_of(*CLIPS, rung_steps=(50,))
    task = Task(model, torch.float32, SETTINGS["sgd"])
    task_without = task if model in WITHOUT_DRAWS else Undropped(model, torch.float32, SETTINGS["sgd"])
    batched = trained(BatchedEngine(cohort, task_without, device="cuda", captures=captures), cohort)
    solo = trained(SoloEngine(cohort, task_without, device="cuda"), cohort)
    assert_close(batched, solo, tolerance=1e-4)


class Undropped(Task):
    """A task whose dropout is off: fused dropout on a GPU draws numbers of its own."""

    def model(self) -> torch.nn.Module:
        model = super().model()
        for each in model.modules():
            if isinstance(each, torch.nn.Dropout):
                each.p = 0.0
            if isinstance(each, torch.nn.LSTM | torch.nn.MultiheadAttention):
                each.dropout = 0.0
        return model


@contextmanager
def synchronizing_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_step_waits_for_nothing(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = cohort_of(*MIXED, "global_norm:1e9", rung_steps=(40,), reference_norm=1.0, largest_norm=50.0)
    task = Task("cnn", torch.float32, SETTINGS[optimizer])
    engine = BatchedEngine(cohort, task, device="cuda", captures=False)
    advanced(engine, lanes_of(cohort), 1)  # the first step records, and loads libraries
    apply, run = LaneBatch.apply, Recorded.__call__

    def applied(self: LaneBatch, losses: Tensor, grads: Tensor) -> None:
        with synchronizing_is_an_error():
            apply(self, losses, grads)

    def ran(self: Recorded, *args: object) -> object:
        with synchronizing_is_an_error():
            return run(self, *args)

    monkeypatch.setattr(LaneBatch, "apply", applied)
    monkeypatch.setattr(Recorded, "__call__", ran)
    advanced(engine, lanes_of(cohort), 20)


def test_mixed_cohort_agrees_with_the_cpu() -> None:
    cohort = cohort_of(*MIXED, rung_steps=(40,), reference_norm=1.0)
    workload = toy(dropout=0.0, batch_norm=True)
    on_cpu = trained(BatchedEngine(cohort, workload), cohort)
    on_gpu = trained(BatchedEngine(cohort, toy(dropout=0.0, batch_norm=True), device="cuda"), cohort)
    for lane, expected in on_cpu.items():
        torch.testing.assert_close(on_gpu[lane].weights.cpu(), expected.weights, rtol=1e-3, atol=1e-3)
        assert on_gpu[lane].record.clip_fraction == pytest.approx(expected.record.clip_fraction, abs=0.1)


@pytest.mark.parametrize("captures", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("stopped_at", [4, 33])
def test_checkpoint_goes_on_where_it_was(stopped_at: int, captures: bool) -> None:
    def make() -> BatchedEngine:
        return BatchedEngine(cohort, toy(batch_norm=True), device="cuda", captures=captures)

    cohort: Cohort = cohort_of(*MIXED, rung_steps=(4, 60), reference_norm=1.0)
    engine = make()
    advanced(engine, lanes_of(cohort), stopped_at)
    state = engine.state()
    on_cpu = EngineState({name: each.cpu().clone() for name, each in state.tensors.items()}, state.values)
    undisturbed = trained(engine, cohort, 60)
    again = make()
    again.restore(on_cpu)
    assert_close(trained(again, cohort, 60), undisturbed, tolerance=1e-4)


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
def test_lower_precision_is_near_single_lanes(number_format: Precision) -> None:
    def small(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, targets = regression(step, generator)
        return inputs, 0.1 * targets

    def make() -> AnyWorkload:
        return workload_of(train=small, precision=number_format)

    cohort = cohort_of("none", "global_norm:0.3", "value:0.05", rung_steps=(40,))
    batched = trained(BatchedEngine(cohort, make(), device="cuda"), cohort)
    solo = trained(SoloEngine(cohort, make(), device="cuda"), cohort)
    for lane, expected in solo.items():
        torch.testing.assert_close(batched[lane].weights, expected.weights, rtol=0, atol=2e-2)


def test_nan_in_one_seed_leaves_the_others_alone() -> None:
    cohort = cohort_of(*MIXED, rung_steps=(40,), reference_norm=1.0)
    healthy = trained(BatchedEngine(cohort, toy(dropout=0.0), device="cuda"), cohort)
    found = trained(BatchedEngine(cohort, toy(dropout=0.0, nan_step=5, nan_seed=1), device="cuda"), cohort)
    for lane, each in found.items():
        assert each.record.divergence_step == (5 if lane.seed == 1 else None)
    assert_close({lane: each for lane, each in found.items() if lane.seed == 0}, healthy)
