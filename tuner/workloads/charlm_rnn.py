"""A character language model on real text: a plain recurrent network, the textbook case for clipping.

The text is the standard library's help (``pydoc_data.topics``, about 465,000 characters, all topics in sorted
order); the first 90 % train, the last 10 % are held out. At the default learning rate the gradients of the
unrolled network explode now and then, and an unclipped run is clearly worse.

Source: Pascanu, Mikolov and Bengio (2013), section 4, https://arxiv.org/abs/1211.5063 (clipping for recurrent
networks); the data, sizes and learning rate are ours.
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
TRAIN_SHARE = 0.9
NUM_VALIDATION_WINDOWS = 128

#: Characters and the characters that follow them, each of shape [batch, window].
Windows = tuple[Tensor, Tensor]


class Text(NamedTuple):
    """The corpus as character numbers.

    Attributes:
        train: shape (characters,), int64.
        held_out: the same for the held-out end of the text.
        alphabet: the characters, sorted; a number is an index into it.
    """

    train: Tensor
    held_out: Tensor
    alphabet: str


@cache
def load_text(device: torch.device = CPU) -> Text:
    """Read the corpus, once per process and device.

    Args:
        device: where the numbers shall lie.

    Returns:
        Training and held-out text over one alphabet.
    """
    from pydoc_data import topics

    text = "\n".join(topics.topics[key] for key in sorted(topics.topics))
    alphabet = "".join(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(alphabet)}
    encoded = torch.tensor([numbers[character] for character in text], device=device)
    cut = int(len(encoded) * TRAIN_SHARE)
    return Text(train=encoded[:cut], held_out=encoded[cut:], alphabet=alphabet)


class _Network(nn.Module):
    """Embedding, an Elman recurrence with tanh, and a linear read-out."""

    def __init__(self, alphabet: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, embedding)
        self.recurrence = nn.RNN(embedding, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, alphabet)

    def forward(self, characters: Tensor) -> Tensor:
        hidden, _ = self.recurrence(self.embedding(characters))
        logits: Tensor = self.readout(hidden)
        return logits


class CharlmRnn(Workload[Windows]):
    """Next-character prediction with an Elman network and plain SGD; the objective is nats per character."""

    @dataclass(frozen=True)
    class Parameters:
        """Sizes of model and batch, and the learning rate."""

        embedding: int = parameter(32, "Width of a character's embedding.", low=1, high=1024)
        hidden: int = parameter(64, "Width of the recurrent state.", low=1, high=4096)
        batch_size: int = parameter(16, "Windows per training batch.", low=1, high=4096)
        window: int = parameter(
            48, "Characters per window, the length of the unrolled network.", low=2, high=1024
        )
        learning_rate: float = parameter(4.0, "Learning rate of plain SGD.", low=1e-6, high=1000.0)

    name: ClassVar[str] = "charlm-rnn"
    description: ClassVar[str] = (
        "Character language model (Elman RNN, SGD) on the standard library's help texts."
    )
    parameters: Parameters

    def model(self) -> nn.Module:  # noqa: D102
        return _Network(len(load_text().alphabet), self.parameters.embedding, self.parameters.hidden)

    def train_batch(self, step: int, generator: torch.Generator) -> Windows:  # noqa: D102
        del step
        return self._windows(load_text(self.device).train, self.parameters.batch_size, generator)

    def validation_batches(self) -> Iterable[Windows]:  # noqa: D102
        generator = torch.Generator().manual_seed(0)
        return (self._windows(load_text(self.device).held_out, NUM_VALIDATION_WINDOWS, generator),)

    def loss(self, model: nn.Module, batch: Windows) -> Tensor:  # noqa: D102
        characters, following = batch
        return nn.functional.cross_entropy(model(characters).flatten(0, 1), following.flatten())

    def optimizer(self) -> OptimizerSetting:  # noqa: D102
        return sgd(lr=self.parameters.learning_rate)

    def _windows(self, text: Tensor, count: int, generator: torch.Generator) -> Windows:
        """Windows at random positions of a text."""
        width = self.parameters.window
        starts = torch.randint(0, len(text) - width, (count, 1), generator=generator).to(text.device)
        windows = text[starts + torch.arange(width + 1, device=text.device)]
        return windows[:, :-1], windows[:, 1:]
