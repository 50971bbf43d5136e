"""A toy workload and trial builders for the tests of `tuner`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import pytest
import torch
import toys

from tuner.evidence import Features, LaneResult, NormSketch, Reference, Stage, Trial, TrialState
from tuner.spec import ClipSetting
from tuner.training.cohort import Cohort


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> None:
    """Models this small lose by sharing their work between threads, the more so on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def toy() -> Callable[..., toys.Toy]:
    """Make a toy with some of its parameters set."""
    return toys.toy


@pytest.fixture
def cohort() -> Callable[..., Cohort]:
    """Make a cohort of settings in text form; the trial's id is the text, off is protected."""
    return toys.cohort_of


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Median L2 norm 1, median largest element 0.1."""
    return Reference(
        l2_norm=NormSketch(median=1.0, q90=2.0, q99=3.0, max=4.0),
        max_abs=NormSketch(median=0.1, q90=0.2, q99=0.3, max=0.4),
        num_batches=64,
    )


@pytest.fixture(scope="session")
def sgd_reference(reference: Reference) -> Reference:
    """The same, measured on a workload that trains by plain SGD at a learning rate of 0.5."""
    features = Features(
        model_signature="0123456789abcdef",
        num_parameters=10,
        num_tensors=2,
        optimizer="sgd",
        learning_rate=0.5,
        batch_size=8,
        precision="fp32",
    )
    return dataclasses.replace(reference, features=features)


@pytest.fixture(scope="session")
def trial() -> Callable[..., Trial]:
    """Make an ended trial: one value per seed, None = diverged at step 7."""

    def make(
        setting: str,
        *values: float | None,
        number: int = 0,
        state: TrialState = TrialState.COMPLETE,
        clip_fraction: float = 0.5,
        mean_scale: float = 0.8,
        initial: float | None = None,
        rungs: Mapping[int, Mapping[int, float | None]] | None = None,
        cohort: int = 0,
        stage: Stage = Stage.SEARCH,
        seeds: tuple[int, ...] = (),
    ) -> Trial:
        candidate = ClipSetting.parse(setting)
        lanes = tuple(
            LaneResult(
                seed=seed,
                num_steps=7 if value is None else 100,
                value=value,
                divergence_step=7 if value is None else None,
                clip_fraction=0.0 if candidate.is_off else clip_fraction,
                mean_scale=1.0 if candidate.is_off else mean_scale,
                norms=NormSketch(median=1.0 + seed, q90=2.0, q99=3.0, max=4.0),
                num_non_finite=int(value is None),
                seconds=0.5,
                initial=initial,
            )
            for seed, value in zip(seeds or range(len(values)), values, strict=not seeds)
        )
        return Trial(
            id=f"{number}-{setting}",
            number=number,
            cohort=cohort,
            setting=candidate,
            state=state,
            rungs=rungs or {},
            lanes=lanes,
            stage=stage,
            seeds=seeds,
        )

    return make
