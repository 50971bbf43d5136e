"""The slow, readable training that the engine must equal: plain PyTorch, as anybody would write it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tuner.optimizers import OptimizerSetting, adam, adamw, sgd
from tuner.spec import ClipSetting
from tuner.training.cohort import Cohort, CohortTrial
from tuner.training.engine import LaneId
from tuner.training.randomness import data_generator
from tuner.training.solo import SoloEngine, initial_model
from tuner.workloads.digits_mlp import DigitsMlp, Images

NUM_STEPS = 100
OPTIMIZERS = {
    "sgd": sgd(0.1),
    "nesterov": sgd(0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "adam": adam(1e-3, weight_decay=1e-4),
    "adamw": adamw(1e-3),
}
TORCH_OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "nesterov": lambda parameters: torch.optim.SGD(
        parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    ),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}
CLIPS = {
    "none": lambda parameters: None,
    "global_norm:0.3": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.3),
    "global_norm_inf:0.05": lambda parameters: nn.utils.clip_grad_norm_(
        parameters, 0.05, norm_type=float("inf")
    ),
    "value:0.01": lambda parameters: nn.utils.clip_grad_value_(parameters, 0.01),
}


class Digits(DigitsMlp):
    """Digits with a chosen optimizer."""

    def __init__(self, optimizer: OptimizerSetting) -> None:
        super().__init__()
        self._optimizer = optimizer

    def optimizer(self) -> OptimizerSetting:
        return self._optimizer


def train_plainly(workload: Digits, optimizer: str, clip: str) -> tuple[nn.Module, list[float], int]:
    """One hundred steps without any of our code but the data and the initial weights."""
    model = initial_model(workload, 0, torch.device("cpu"))
    optimizing = TORCH_OPTIMIZERS[optimizer](model.parameters())
    generator = data_generator(0)
    norms: list[float] = []
    num_clipped = 0
    for step in range(NUM_STEPS):
        optimizing.zero_grad()
        batch: Images = workload.train_batch(step, generator)
        workload.loss(model, batch).backward()
        before = [each.grad.clone() for each in model.parameters()]
        norms.append(float(nn.utils.get_total_norm(before)))
        CLIPS[clip](list(model.parameters()))
        num_clipped += any(
            not torch.equal(one, each.grad) for one, each in zip(before, model.parameters(), strict=True)
        )
        optimizing.step()
    return model, norms, num_clipped


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", CLIPS)
def test_hundred_steps_equal_plain_pytorch(optimizer: str, clip: str) -> None:
    workload = Digits(OPTIMIZERS[optimizer])
    model, norms, num_clipped = train_plainly(workload, optimizer, clip)
    trial = CohortTrial(id="t", setting=ClipSetting.parse(clip))
    cohort = Cohort(
        workload="digits-mlp",
        parameters={},
        trials=(trial,),
        seeds=(0,),
        rung_steps=(NUM_STEPS,),
        divergence_factor=3.0,
    )
    engine = SoloEngine(cohort, workload)
    list(engine.advance([LaneId("t", 0)], NUM_STEPS))
    record = engine.read([LaneId("t", 0)])[LaneId("t", 0)]
    # Our norm sums a tensor's elements in another order; over 100 steps that is all that may differ.
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    trained = engine._lanes[LaneId("t", 0)].model
    torch.testing.assert_close(trained.state_dict(), model.state_dict(), **tolerance)
    (images,) = workload.validation_batches()
    value = engine.evaluate([LaneId("t", 0)])[LaneId("t", 0)].loss
    torch.testing.assert_close(value, workload.loss(model, images).item(), **tolerance)
    assert record.num_steps == NUM_STEPS
    assert record.clip_fraction == num_clipped / NUM_STEPS
    assert record.norms is not None
    expected = torch.tensor(norms, dtype=torch.float64)
    measured = torch.tensor(
        [record.norms.median, record.norms.q90, record.norms.q99, record.norms.max], dtype=torch.float64
    )
    quantiles: Tensor = torch.quantile(expected, torch.tensor([0.5, 0.9, 0.99, 1.0], dtype=torch.float64))
    torch.testing.assert_close(measured, quantiles, rtol=1e-4, atol=0)
