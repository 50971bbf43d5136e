"""What a workload's features say, and what does not change them."""

from __future__ import annotations

import torch
from torch import nn
from toys import perceptron, regression, toy, workload_of

from tuner.optimizers import adam, adamw
from tuner.training.features import features_of, model_signature


def test_features_of_a_known_workload() -> None:
    workload = workload_of(optimizer=adam(0.01), accumulation_steps=3, precision="bf16")
    found = features_of(workload, perceptron(), regression(0, torch.Generator()))
    # 4 x 8 weights and 8 biases, 8 weights and 1 bias.
    assert (found.num_parameters, found.num_tensors) == (49, 4)
    assert (found.optimizer, found.learning_rate) == ("adam", 0.01)
    assert found.batch_size == 3 * 8
    assert found.precision == "bf16"
    assert len(found.model_signature) == 16


def test_optimizer_of_a_function_has_no_rate_that_is_known() -> None:
    workload = workload_of(optimizer=lambda parameters: torch.optim.NAdam(parameters, lr=0.01))
    found = features_of(workload, perceptron(), regression(0, torch.Generator()))
    assert (found.optimizer, found.learning_rate) == ("nadam", None)


def test_optimizers_class_counts_not_its_settings() -> None:
    batch = regression(0, torch.Generator())
    one, other = (
        features_of(workload_of(optimizer=each(0.1)), perceptron(), batch) for each in (adam, adamw)
    )
    assert one == other


def test_batches_without_examples_say_so() -> None:
    found = features_of(workload_of(), perceptron(), {"step": 3, "scalar": torch.tensor(1.0)})
    assert found.batch_size is None


def test_signature_is_of_names_shapes_and_types_alone() -> None:
    signature = model_signature(perceptron())
    assert signature == model_signature(perceptron()), "weights differ"
    others = [
        nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1)),
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)),
        nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 1)),
    ]
    frozen = perceptron()
    frozen[0].requires_grad_(False)
    found = {signature, *map(model_signature, [*others, frozen])}
    assert len(found) == 5


def test_model_is_not_changed() -> None:
    model = toy(batch_norm=True).model()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    features_of(workload_of(optimizer=torch.optim.Adagrad), model, regression(0, torch.Generator()))
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
