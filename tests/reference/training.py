"""Plain PyTorch trainings, as anybody would write them: one model, one optimizer, one loop.

Nothing here knows of lanes. Only the data, the initial weights and the names of random streams come from `tuner`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tuner.optimizers import OptimizerSetting
from tuner.training.initial import initial_model
from tuner.training.randomness import data_generator, stream_seed
from tuner.workloads import Workload

Parameters = list[nn.Parameter]
Batch = tuple[Tensor, Tensor]

BATCH_SIZE, LENGTH, VOCABULARY, NUM_CLASSES = 6, 5, 7, 3

OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "sgd": lambda given: torch.optim.SGD(given, lr=0.05),
    "nesterov": lambda given: torch.optim.SGD(given, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda given: torch.optim.Adam(given, lr=1e-3, eps=1e-3, weight_decay=1e-3),
    "adamw": lambda given: torch.optim.AdamW(given, lr=1e-3, eps=1e-3, weight_decay=0.1),
    "rmsprop": lambda given: torch.optim.RMSprop(given, lr=1e-3, alpha=0.95, eps=1e-2, momentum=0.5),
    "adagrad": lambda given: torch.optim.Adagrad(given, lr=0.01, eps=1e-6, initial_accumulator_value=0.1),
}

CLIPS: dict[str, Callable[[Parameters], object]] = {
    "none": lambda given: None,
    "global_norm:0.1": lambda given: nn.utils.clip_grad_norm_(given, 0.1),
    "global_norm:0.8": lambda given: nn.utils.clip_grad_norm_(given, 0.8),
    "global_norm_inf:0.1": lambda given: nn.utils.clip_grad_norm_(given, 0.1, norm_type=float("inf")),
    "value:0.02": lambda given: nn.utils.clip_grad_value_(given, 0.02),
}


class SequenceLstm(nn.Module):
    """The last output of an nn.LSTM of two layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 4)
        self.lstm = nn.LSTM(4, 5, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(5, NUM_CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(tokens))
        return self.head(outputs[:, -1])


class SmallTransformer(nn.Module):
    """The mean output of an nn.TransformerEncoderLayer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)).mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, NUM_CLASSES)
    ),
    "dropout": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.GELU(), nn.Dropout(0.3), nn.Linear(12, NUM_CLASSES)
    ),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, NUM_CLASSES),
    ),
    "lstm": SequenceLstm,
    "transformer": SmallTransformer,
}
OF_TOKENS = ("lstm", "transformer")


class Task(Workload[Batch]):
    """A model on noise with a rule in it, in a number format; the optimizer is whoever trains its business."""

    def __init__(self, model: str, dtype: torch.dtype, optimizer: OptimizerSetting | None = None) -> None:
        super().__init__()
        self._model, self._dtype, self._optimizer = model, dtype, optimizer

    def model(self) -> nn.Module:
        return MODELS[self._model]().to(self._dtype)

    def train_batch(self, step: int, generator: torch.Generator) -> Batch:
        del step
        if self._model in OF_TOKENS:
            tokens = torch.randint(0, VOCABULARY, (BATCH_SIZE, LENGTH), generator=generator)
            return tokens, tokens[:, -1] % NUM_CLASSES
        images = torch.randn(BATCH_SIZE, 1, 4, 4, generator=generator, dtype=torch.float64)
        return images.to(self._dtype), images.flatten(1)[:, :NUM_CLASSES].argmax(1)

    def validation_batches(self) -> Iterable[Batch]:
        return [self.train_batch(0, torch.Generator().manual_seed(number)) for number in (1, 2)]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def optimizer(self) -> OptimizerSetting:
        assert self._optimizer is not None
        return self._optimizer


class Training(NamedTuple):
    """What a plain training leaves; losses and norms step by step, norms before clipping."""

    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    losses: Tensor
    norms: Tensor
    num_clipped: int
    value: float


@cache
def train_plainly(
    model_name: str, dtype: torch.dtype, *, optimizer: str, clip: str, seed: int, num_steps: int
) -> Training:
    """Some steps of one model; dropout draws from torch's global generator, which is given back."""
    workload = Task(model_name, dtype)
    model = initial_model(workload, seed, torch.device("cpu"))
    optimizing = OPTIMIZERS[optimizer](list(model.parameters()))
    generator = data_generator(seed)
    losses, norms, num_clipped = [], [], 0
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(seed, "training"))
        for step in range(num_steps):
            optimizing.zero_grad()
            loss = workload.loss(model, workload.train_batch(step, generator))
            loss.backward()
            before = [each.grad.clone() for each in model.parameters()]
            CLIPS[clip](list(model.parameters()))
            num_clipped += any(
                not torch.equal(one, each.grad) for one, each in zip(before, model.parameters(), strict=True)
            )
            optimizing.step()
            losses.append(loss.detach())
            norms.append(nn.utils.get_total_norm(before))
    model.eval()
    with torch.no_grad():
        values = [workload.loss(model, batch) for batch in workload.validation_batches()]
    return Training(
        weights={name: each.detach() for name, each in model.named_parameters()},
        buffers=dict(model.named_buffers()),
        losses=torch.stack(losses),
        norms=torch.stack(norms),
        num_clipped=num_clipped,
        value=float(torch.stack(values).double().mean()),
    )
