"""A toy workload and trial builders for the tests of `tuner`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tuner.evidence import LaneResult, NormSketch, Reference, Trial, TrialState
from tuner.optimizers import OptimizerSetting, sgd
from tuner.spec import ClipSetting
from tuner.training.cohort import Cohort, CohortTrial
from tuner.workloads import Workload, parameter

Batch = tuple[Tensor, Tensor]


class Toy(Workload[Batch]):
    """Linear regression with dropout; curvature * lr above 2 makes plain SGD explode."""

    @dataclass(frozen=True)
    class Parameters:
        """Settings of the toy."""

        learning_rate: float = parameter(0.05, "Learning rate.", low=1e-6, high=100.0)
        momentum: float = parameter(0.0, "Momentum.", low=0.0, high=0.99)
        dropout: float = parameter(0.5, "Dropout.", low=0.0, high=0.9)
        nan_step: int = parameter(-1, "Step whose batch holds a NaN.", low=-1)
        raise_step: int = parameter(-1, "Step that raises.", low=-1)

    name = "toy"
    parameters: Parameters

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(self.parameters.dropout), nn.Linear(8, 1))

    def train_batch(self, step: int, generator: torch.Generator) -> Batch:
        inputs = torch.randn(8, 4, generator=generator)
        if step == self.parameters.raise_step:
            raise RuntimeError("broken data")
        if step == self.parameters.nan_step:
            inputs[0, 0] = torch.nan
        return inputs, inputs.sum(dim=1)

    def validation_batches(self) -> Iterable[Batch]:
        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randn(size, 4, generator=generator) for size in (16, 8)]
        return [(each, each.sum(dim=1)) for each in inputs]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs).squeeze(1), targets)

    def optimizer(self) -> OptimizerSetting:
        return sgd(self.parameters.learning_rate, momentum=self.parameters.momentum)


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> None:
    """Models this small lose by sharing their work between threads, the more so on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def toy() -> Callable[..., Toy]:
    """Make a toy with some of its parameters set."""
    return lambda **given: Toy(Toy.Parameters(**given))


@pytest.fixture
def cohort() -> Callable[..., Cohort]:
    """Make a cohort of settings in text form; the trial's id is the text, off is protected."""

    def make(
        *settings: str,
        seeds: Sequence[int] = (0, 1),
        rung_steps: Sequence[int] = (4, 12),
        history: Mapping[int, tuple[float, ...]] | None = None,
        divergence_factor: float = 3.0,
    ) -> Cohort:
        return Cohort(
            workload="toy",
            parameters={},
            trials=tuple(
                CohortTrial(id=text, setting=ClipSetting.parse(text), protected=text == "none")
                for text in settings
            ),
            seeds=tuple(seeds),
            rung_steps=tuple(rung_steps),
            divergence_factor=divergence_factor,
            history=history or {},
        )

    return make


@pytest.fixture
def reference() -> Reference:
    """Median L2 norm 1, median largest element 0.1."""
    return Reference(
        l2_norm=NormSketch(median=1.0, q90=2.0, q99=3.0, max=4.0),
        max_abs=NormSketch(median=0.1, q90=0.2, q99=0.3, max=0.4),
        num_batches=64,
    )


@pytest.fixture
def trial() -> Callable[..., Trial]:
    """Make an ended trial: one value per seed, None = diverged at step 7."""

    def make(
        setting: str,
        *values: float | None,
        number: int = 0,
        state: TrialState = TrialState.COMPLETE,
        clip_fraction: float = 0.5,
        rungs: Mapping[int, Mapping[int, float | None]] | None = None,
    ) -> Trial:
        lanes = tuple(
            LaneResult(
                seed=seed,
                num_steps=7 if value is None else 100,
                value=value,
                divergence_step=7 if value is None else None,
                clip_fraction=0.0 if setting == "none" else clip_fraction,
                mean_scale=1.0 if setting == "none" else 0.8,
                norms=NormSketch(median=1.0 + seed, q90=2.0, q99=3.0, max=4.0),
                num_non_finite=int(value is None),
                seconds=0.5,
            )
            for seed, value in enumerate(values)
        )
        return Trial(
            id=f"{number}-{setting}",
            number=number,
            cohort=0,
            setting=ClipSetting.parse(setting),
            state=state,
            rungs=rungs or {},
            lanes=lanes,
        )

    return make
