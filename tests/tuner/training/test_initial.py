"""Where every trial of a seed starts, and what a model must be like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from toys import perceptron, toy, workload_of

from tuner.errors import UnsupportedModelError
from tuner.training.initial import initial_model, require_scalar, require_trainable

CPU = torch.device("cpu")


def weights(seed: int) -> torch.Tensor:
    model = initial_model(workload_of(), seed, CPU)
    return torch.cat([each.flatten() for each in model.parameters()])


def test_seed_decides_on_the_weights() -> None:
    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_callers_generator_neither_matters_nor_changes() -> None:
    expected = weights(3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(weights(3), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_model_given_as_a_module_is_copied() -> None:
    given = perceptron()
    model = initial_model(workload_of(given), 0, CPU)
    assert model is not given
    assert torch.equal(next(model.parameters()), next(given.parameters()))


@pytest.mark.parametrize(
    ("model", "part", "reason"),
    [
        (nn.Identity(), "the model", "no parameter that requires a gradient"),
        (nn.Linear(1, 1).requires_grad_(False), "the model", "no parameter that requires a gradient"),
        (
            nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).half()),
            "parameter '1.weight'",
            "is torch.float16 where",
        ),
        (nn.EmbeddingBag(3, 2, sparse=True), "module '' (EmbeddingBag)", "build it with sparse=False"),
    ],
    ids=["empty", "frozen", "mixed-types", "sparse"],
)
def test_model_that_cannot_be_trained_is_refused(model: nn.Module, part: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        require_trainable(model)
    assert caught.value.part == part
    assert reason in caught.value.reason
    assert caught.value.code == "unsupported_model"


def test_frozen_parts_may_be_of_another_type_or_sparse() -> None:
    table = nn.Embedding(3, 2, sparse=True).requires_grad_(False)
    require_trainable(nn.Sequential(table, nn.Linear(2, 1), nn.Linear(1, 1).double().requires_grad_(False)))


@pytest.mark.parametrize("loss", [torch.ones(()), torch.ones(1), torch.ones(1, 1)])
def test_one_number_is_a_loss(loss: torch.Tensor) -> None:
    require_scalar(loss)


@pytest.mark.parametrize(
    ("loss", "got"), [(torch.ones(2), r"a tensor of shape \(2,\)"), (0.5, "float"), (None, "NoneType")]
)
def test_anything_else_is_not(loss: Any, got: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"the loss must be one number, got {got}: take the mean"):
        require_scalar(loss)


def test_batch_norm_model_starts_with_fresh_statistics() -> None:
    model = initial_model(toy(batch_norm=True), 0, CPU)
    assert model[1].num_batches_tracked == 0
