"""A small multilayer perceptron on scikit-learn's handwritten digits: the case where clipping hardly matters.

1,797 images of 8 x 8 pixels; a fixed, stratified fifth is held out.

Source: the test set of "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak (1998),
https://doi.org/10.24432/C50P49, as shipped by ``sklearn.datasets.load_digits``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tuner.optimizers import OptimizerSetting, sgd
from tuner.workloads.base import Workload, parameter

CPU = torch.device("cpu")
HELD_OUT_SHARE = 0.2
NUM_PIXELS = 64
NUM_CLASSES = 10

#: Pixels [batch, 64] in [0, 1] and labels [batch].
Images = tuple[Tensor, Tensor]


class Digits(NamedTuple):
    """The data, split once and for all."""

    train: Images
    held_out: Images


@cache
def load_digits(device: torch.device = CPU) -> Digits:
    """Read the images, once per process and device.

    Args:
        device: where they shall lie.

    Returns:
        Training and held-out images with their labels.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    pixels, labels = load(return_X_y=True)
    train, held_out, train_labels, held_out_labels = train_test_split(
        pixels / 16.0, labels, test_size=HELD_OUT_SHARE, stratify=labels, random_state=0
    )
    return Digits(
        train=_tensors(train, train_labels, device), held_out=_tensors(held_out, held_out_labels, device)
    )


def _tensors(pixels: object, labels: object, device: torch.device) -> Images:
    return (
        torch.as_tensor(pixels, dtype=torch.float32, device=device),
        torch.as_tensor(labels, dtype=torch.int64, device=device),
    )


class DigitsMlp(Workload[Images]):
    """Digit recognition with one hidden layer and SGD with momentum; the objective is the cross-entropy."""

    @dataclass(frozen=True)
    class Parameters:
        """Width, batch size and learning rate."""

        hidden: int = parameter(64, "Width of the hidden layer.", low=1, high=4096)
        batch_size: int = parameter(64, "Images per training batch.", low=1, high=1024)
        learning_rate: float = parameter(0.1, "Learning rate of SGD with momentum 0.9.", low=1e-6, high=100.0)

    name: ClassVar[str] = "digits-mlp"
    description: ClassVar[str] = (
        "Handwritten digits (scikit-learn, 8 x 8 pixels) with a small perceptron and SGD."
    )
    parameters: Parameters

    def model(self) -> nn.Module:  # noqa: D102
        return nn.Sequential(
            nn.Linear(NUM_PIXELS, self.parameters.hidden),
            nn.ReLU(),
            nn.Linear(self.parameters.hidden, NUM_CLASSES),
        )

    def train_batch(self, step: int, generator: torch.Generator) -> Images:  # noqa: D102
        del step
        pixels, labels = load_digits(self.device).train
        chosen = torch.randint(0, len(labels), (self.parameters.batch_size,), generator=generator)
        chosen = chosen.to(labels.device)
        return pixels[chosen], labels[chosen]

    def validation_batches(self) -> Iterable[Images]:  # noqa: D102
        return (load_digits(self.device).held_out,)

    def loss(self, model: nn.Module, batch: Images) -> Tensor:  # noqa: D102
        pixels, labels = batch
        return nn.functional.cross_entropy(model(pixels), labels)

    def optimizer(self) -> OptimizerSetting:  # noqa: D102
        return sgd(lr=self.parameters.learning_rate, momentum=0.9)
