"""The models that the lane benchmarks train: from a few hundred parameters to a model that fills the cores.

Data is random and lies on the device: what is timed is training, not loading. Every contestant picks its batches
from the same pool in the same way, so that each pays for that as often as it has to.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tuner.optimizers import Adam, OptimizerSetting, Sgd, adam, adamw
from tuner.workloads.base import AnyWorkload, Workload
from tuner.workloads.charlm_rnn import CharlmRnn
from tuner.workloads.digits_mlp import DigitsMlp, load_digits

#: Examples and targets, each of shape [batch, ...].
Pair = tuple[Tensor, Tensor]

NUM_EXAMPLES = 2048


class PoolWorkload(Workload[Pair]):
    """Classification of examples from a pool that is made once and lies on the device."""

    batch_size: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self._pools: dict[torch.device, Pair] = {}

    @abstractmethod
    def pool(self) -> Pair:
        """All examples and their classes, on the CPU."""

    def _on_device(self) -> Pair:
        if self.device not in self._pools:
            examples, targets = self.pool()
            self._pools[self.device] = examples.to(self.device), targets.to(self.device)
        return self._pools[self.device]

    def train_batch(self, step: int, generator: torch.Generator) -> Pair:  # noqa: D102
        del step
        examples, targets = self._on_device()
        chosen = torch.randint(0, len(targets), (self.batch_size,), generator=generator)
        chosen = chosen.to(self.device, non_blocking=True)
        return examples[chosen], targets[chosen]

    def validation_batches(self) -> Iterable[Pair]:  # noqa: D102
        examples, targets = self.pool()
        return ((examples[: self.batch_size], targets[: self.batch_size]),)

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:  # noqa: D102
        examples, targets = batch
        return functional.cross_entropy(model(examples).flatten(0, -2), targets.flatten())

    def optimizer(self) -> OptimizerSetting:  # noqa: D102
        return adamw(1e-3)


def vectors(width: int, num_classes: int) -> Pair:
    """Random vectors and classes, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    examples = torch.randn(NUM_EXAMPLES, width, generator=generator)
    return examples, torch.randint(0, num_classes, (NUM_EXAMPLES,), generator=generator)


class TinyMlp(PoolWorkload):
    """16-32-4: a step is nothing but overhead."""

    batch_size = 32

    def pool(self) -> Pair:  # noqa: D102
        return vectors(16, 4)

    def model(self) -> nn.Module:  # noqa: D102
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


class WideMlp(PoolWorkload):
    """64-256-256-4: between overhead and arithmetic."""

    batch_size = 64

    def pool(self) -> Pair:  # noqa: D102
        return vectors(64, 4)

    def model(self) -> nn.Module:  # noqa: D102
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))


class SmallCnn(PoolWorkload):
    """Two 3 x 3 convolutions on the real 8 x 8 digits."""

    batch_size = 32

    def pool(self) -> Pair:  # noqa: D102
        pixels, labels = load_digits().train
        return pixels.view(-1, 1, 8, 8), labels

    def model(self) -> nn.Module:  # noqa: D102
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, 10),
        )


class MnistCnn(PoolWorkload):
    """The network of HFTA's notebook (PyTorch's MNIST example), with Adam where HFTA has Adadelta.

    Source: Wang et al. (2021), https://arxiv.org/abs/2102.02344, tutorial notebook.
    """

    batch_size = 64

    def pool(self) -> Pair:  # noqa: D102
        images, labels = vectors(28 * 28, 10)
        return images.view(-1, 1, 28, 28), labels

    def model(self) -> nn.Module:  # noqa: D102
        return nn.Sequential(
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(9216, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, 10),
        )

    def optimizer(self) -> OptimizerSetting:  # noqa: D102
        return adam(1e-3)


class _Lstm(nn.Module):
    """An LSTM and a read-out of its last state; [batch, 1, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrence = nn.LSTM(16, 64, batch_first=True)
        self.readout = nn.Linear(64, 4)

    def forward(self, sequences: Tensor) -> Tensor:
        states, _ = self.recurrence(sequences)
        logits: Tensor = self.readout(states[:, -1])
        return logits


class LstmClassifier(PoolWorkload):
    """One nn.LSTM layer of 64 units over 32 steps."""

    batch_size = 16

    def pool(self) -> Pair:  # noqa: D102
        examples, targets = vectors(32 * 16, 4)
        return examples.view(-1, 32, 16), targets

    def model(self) -> nn.Module:  # noqa: D102
        return _Lstm()


class _Transformer(nn.Module):
    """A causal language model: embedding, sinusoidal positions, encoder layers, read-out."""

    positions: Tensor
    mask: Tensor

    def __init__(self, width: int, hidden: int, length: int, alphabet: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, width)
        self.dropout = nn.Dropout(0.2)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, hidden, dropout=0.2, batch_first=True) for _ in range(2)
        )
        self.readout = nn.Linear(width, alphabet)
        angles = torch.arange(length)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(10000.0) / width)
        )
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))
        self._scale = math.sqrt(width)

    def forward(self, characters: Tensor) -> Tensor:
        states = self.dropout(self.embedding(characters) * self._scale + self.positions)
        for layer in self.layers:
            states = layer(states, src_mask=self.mask)
        logits: Tensor = self.readout(states)
        return logits


class TransformerLm(PoolWorkload):
    """HFTA's language model: d = 128, 2 layers, 2 heads, 32 tokens; a small alphabet and Adam, not Adadelta.

    Source: Wang et al. (2021), https://arxiv.org/abs/2102.02344, appendix; PyTorch's word language model example.
    """

    batch_size = 32
    width: ClassVar[int] = 128
    hidden: ClassVar[int] = 128
    length: ClassVar[int] = 32
    alphabet: ClassVar[int] = 256

    def pool(self) -> Pair:  # noqa: D102
        generator = torch.Generator().manual_seed(0)
        text = torch.randint(0, self.alphabet, (NUM_EXAMPLES, self.length + 1), generator=generator)
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    def model(self) -> nn.Module:  # noqa: D102
        return _Transformer(self.width, self.hidden, self.length, self.alphabet)

    def optimizer(self) -> OptimizerSetting:  # noqa: D102
        return adam(1e-3)


class WideTransformerLm(TransformerLm):
    """The same with d = 256 and a hidden layer of 1024: its products alone fill the cores."""

    width = 256
    hidden = 1024


@dataclass(frozen=True)
class Goal:
    """What a case should reach on two cores: lanes against the plain loop, at some number of lanes."""

    times: float
    num_lanes: int


@dataclass(frozen=True)
class Case:
    """A workload to time.

    Attributes:
        make: a fresh workload.
        goal: see `Goal`.
        lanes: numbers of lanes measured unless told otherwise.
    """

    make: Callable[[], AnyWorkload]
    goal: Goal | None = None
    lanes: tuple[int, ...] = (1, 4, 16, 64, 256)


CASES: dict[str, Case] = {
    "tiny-mlp": Case(TinyMlp, Goal(10, 32), (1, 4, 16, 32, 64, 256)),
    "digits-mlp": Case(DigitsMlp, Goal(3, 16)),
    "wide-mlp": Case(WideMlp),
    "small-cnn": Case(SmallCnn, Goal(3, 16)),
    "mnist-cnn": Case(MnistCnn, None, (1, 6, 16, 32, 64)),
    "lstm": Case(LstmClassifier, Goal(2, 16)),
    # The default rate lets runs without clipping explode, and a diverged run costs less.
    "charlm-rnn": Case(lambda: CharlmRnn.create({"learning_rate": 0.25})),
    "transformer-lm": Case(TransformerLm),
    "wide-transformer-lm": Case(WideTransformerLm, Goal(1.1, 16), (1, 4, 16, 64)),
}


def plain_optimizer(
    setting: OptimizerSetting, parameters: Iterator[nn.Parameter], *, fused: bool
) -> torch.optim.Optimizer:
    """The optimizer of `torch.optim` that a setting stands for.

    Args:
        setting: one of those that the cases use.
        parameters: of a plain module.
        fused: one kernel for all parameters; otherwise whatever torch takes by default on the device.

    Returns:
        A fresh optimizer.

    Raises:
        TypeError: if the setting is of another kind.
    """
    options = {"fused": True} if fused else {}
    if isinstance(setting, Adam):
        kind = torch.optim.AdamW if setting.decoupled else torch.optim.Adam
        return kind(
            parameters,
            lr=setting.lr,
            betas=setting.betas,
            eps=setting.eps,
            weight_decay=setting.weight_decay,
            **options,
        )
    if isinstance(setting, Sgd):
        return torch.optim.SGD(parameters, lr=setting.lr, momentum=setting.momentum, **options)
    raise TypeError(f"no plain optimizer for {setting}")


def num_states(setting: OptimizerSetting) -> int:
    """Numbers an optimizer keeps per parameter."""
    if isinstance(setting, Sgd):
        return int(setting.momentum > 0)
    return 2


def activation_bytes(workload: AnyWorkload, device: torch.device) -> int:
    """What one lane's forward keeps for its backward, parameters and data apart."""
    model = workload.model().to(device).train()
    workload.device = device
    batch = workload.train_batch(0, torch.Generator().manual_seed(0))
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers(), *batch)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = workload.loss(model, batch)
    del loss
    return sum(size for address, size in kept.items() if address not in own)
