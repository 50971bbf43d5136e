"""Low-rank adapters on a frozen transformer: many settings train side by side and share one backbone.

``python examples/lora_lanes.py`` compares clip settings on the adapters and prints the recommendation as a JSON line,
then what an extra lane costs in memory; ``--memory`` prints the memory alone. Only parameters that require a gradient
belong to a lane, so a lane costs what its adapters cost (weights, gradients, optimizer state) and the activations of
its own forward and backward.

Memory is what torch's allocator handed out, counted exactly and without the interpreter, on one CPU process:

- *at rest*: bytes of all tensors alive between two steps (gradients are not);
- *at peak*: that, and the most that was allocated at once during a step, from torch's own memory profiler;
- *first step*: the same for the one step that records the program while it runs;
- *activations*: what one lane's forward keeps for its backward, by autograd's saved-tensor hooks.

Each is the difference between two numbers of lanes, divided by the lanes between: what all lanes share drops out. The
adapters' part is measured with batches of one window of two characters, so that activations hide nothing of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tuner import tune
from tuner.lanes import trainable
from tuner.optimizers import OptimizerSetting, adamw
from tuner.spec import ClipSetting
from tuner.training.batched import BatchedEngine
from tuner.training.cohort import Cohort, CohortTrial, EngineChosen
from tuner.training.engine import LaneId
from tuner.workloads.base import Workload, parameter
from tuner.workloads.charlm_rnn import Windows, load_text

#: Bytes of a float32, and how many numbers AdamW training keeps per weight: itself, its gradient, two averages.
FLOAT, COPIES = 4, 4


class Adapted(nn.Module):
    """A frozen linear layer plus ``up(down(x))`` of low rank; ``up`` starts at zero.

    Source: Hu et al. (2021), LoRA, section 4, https://arxiv.org/abs/2106.09685.
    """

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's own output and the adapter's."""
        outputs: Tensor = self.frozen(inputs) + self.up(self.down(inputs))
        return outputs


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each after a normalization."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.mixing = (nn.Linear(width, width) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """From (batch, window, width) to the same shape."""
        normed = self.first_norm(hidden)
        heads = [self._split(layer(normed)) for layer in (self.query, self.key, self.value)]
        attended = functional.scaled_dot_product_attention(*heads, is_causal=True)
        hidden = hidden + self.mixing(attended.transpose(1, 2).flatten(2))
        return hidden + self.outer(functional.gelu(self.inner(self.second_norm(hidden))))

    def _split(self, hidden: Tensor) -> Tensor:
        return hidden.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class Backbone(nn.Module):
    """A character transformer; a real one would come from a file."""

    def __init__(self, alphabet: int, width: int, num_layers: int, window: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, width)
        self.positions = nn.Parameter(0.02 * torch.randn(window, width))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, alphabet)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits of shape (batch, window, alphabet)."""
        hidden = self.embedding(characters) + self.positions[: characters.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.readout(self.norm(hidden))
        return logits


@cache
def load_backbone(width: int, num_layers: int, window: int) -> Backbone:
    """The pretrained weights, which are the same for every seed: read once, shared by all lanes, never written."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = Backbone(len(load_text().alphabet), width, num_layers, window)
    return backbone.requires_grad_(False)


def adapt(module: nn.Module, rank: int) -> nn.Module:
    """The same module, every linear layer with an adapter of its own; the frozen tensors are shared, not copied."""
    adapted = shallow_copy(module)
    for name, child in module.named_children():
        wrapped = Adapted(child, rank) if isinstance(child, nn.Linear) else adapt(child, rank)
        adapted.add_module(name, wrapped)
    return adapted


def shallow_copy(module: nn.Module) -> nn.Module:
    twin = module.__new__(type(module))
    twin.__dict__ = module.__dict__ | {"_modules": dict(module._modules)}
    return twin


class LoraCharlm(Workload[Windows]):
    """Next-character prediction by adapters on a frozen transformer, with AdamW."""

    @dataclass(frozen=True)
    class Parameters:
        """Sizes of backbone, adapters and batch, and the learning rate."""

        width: int = parameter(256, "Width of the transformer; a multiple of 4.", low=4, high=4096)
        num_layers: int = parameter(4, "Blocks of the transformer.", low=1, high=64)
        rank: int = parameter(8, "Rank of the adapters.", low=1, high=256)
        batch_size: int = parameter(4, "Windows per training batch.", low=1, high=4096)
        window: int = parameter(32, "Characters per window.", low=2, high=1024)
        learning_rate: float = parameter(0.01, "Learning rate of AdamW.", low=1e-6, high=10.0)

    name: ClassVar[str] = "lora-charlm"
    description: ClassVar[str] = "Adapters on a frozen character transformer (AdamW)."
    parameters: Parameters

    def model(self) -> nn.Module:
        """The frozen backbone with fresh adapters."""
        chosen = self.parameters
        return adapt(load_backbone(chosen.width, chosen.num_layers, chosen.window), chosen.rank)

    def train_batch(self, step: int, generator: torch.Generator) -> Windows:
        """Windows at random places of the text."""
        del step
        return self._windows(load_text(self.device).train, self.parameters.batch_size, generator)

    def validation_batches(self) -> Iterable[Windows]:
        """Sixteen windows of the text's held-out end."""
        generator = torch.Generator().manual_seed(0)
        return (self._windows(load_text(self.device).held_out, 16, generator),)

    def loss(self, model: nn.Module, batch: Windows) -> Tensor:
        """Nats per character."""
        characters, following = batch
        return functional.cross_entropy(model(characters).flatten(0, 1), following.flatten())

    def optimizer(self) -> OptimizerSetting:
        """Lane-wise AdamW."""
        return adamw(lr=self.parameters.learning_rate)

    def _windows(self, text: Tensor, count: int, generator: torch.Generator) -> Windows:
        width = self.parameters.window
        starts = torch.randint(0, len(text) - width, (count, 1), generator=generator).to(text.device)
        windows = text[starts + torch.arange(width + 1, device=text.device)]
        return windows[:, :-1], windows[:, 1:]


# ---- memory ----


@dataclass(frozen=True)
class Footprint:
    """Bytes of a lane batch: between two steps, at most during one, and at most during the first."""

    at_rest: int
    peak: int
    first_step: int


def footprint(workload: LoraCharlm, num_lanes: int, num_steps: int) -> Footprint:
    """Train so many lanes for three steps and count."""
    settings = [ClipSetting(method="global_norm", threshold=0.1 + 0.01 * lane) for lane in range(num_lanes)]
    trials = tuple(CohortTrial(id=str(number), setting=each) for number, each in enumerate(settings))
    cohort = Cohort(
        workload=workload.name,
        parameters=workload.parameter_values,
        trials=trials,
        seeds=(0,),
        rung_steps=(num_steps,),
        divergence_factor=math.inf,
    )
    engine = BatchedEngine(cohort, workload)
    lanes = [LaneId(trial.id, 0) for trial in trials]

    def at_most(step: int) -> int:
        return living_bytes() + allocated_at_most(lambda: list(engine.advance(lanes, step)))

    first_step = at_most(1)
    list(engine.advance(lanes, 2))
    return Footprint(at_rest=living_bytes(), peak=at_most(3), first_step=first_step)


def living_bytes() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    gc.collect()
    with warnings.catch_warnings():
        # To ask some of torch's lazy attributes for their type is to be told that they are deprecated.
        warnings.simplefilter("ignore")
        tensors = [each for each in gc.get_objects() if isinstance(each, Tensor)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


def allocated_at_most(work: Callable[[], Any]) -> int:
    """The most bytes that were allocated at once while ``work`` ran, above what there was before it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    most = current = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        current += event.nbytes()
        most = max(most, current)
    return most


def activation_bytes(workload: LoraCharlm) -> int:
    """What one lane's forward keeps for its backward, without weights and data."""
    model, batch = workload.model(), workload.train_batch(0, torch.Generator().manual_seed(0))
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *batch)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = workload.loss(model, batch)
    del loss
    return sum(size for address, size in kept.items() if address not in own)


def per_extra_lane(workload: LoraCharlm, few: int, many: int, num_steps: int) -> dict[str, int]:
    """Bytes that one more lane costs."""
    small, large = (footprint(workload, num_lanes, num_steps) for num_lanes in (few, many))
    few_bytes, many_bytes = dataclasses.asdict(small), dataclasses.asdict(large)
    return {name: round((many_bytes[name] - few_bytes[name]) / (many - few)) for name in few_bytes}


def memory(workload: LoraCharlm, few: int, many: int, num_steps: int) -> dict[str, Any]:
    """What an extra lane costs, against its adapters' own share: with hardly any activations, and with the batch's."""
    model = workload.model()
    share = FLOAT * COPIES * sum(each.numel() for each in trainable(model).values())
    shortest = LoraCharlm(dataclasses.replace(workload.parameters, batch_size=1, window=2))
    adapters = per_extra_lane(shortest, few, many, num_steps)
    batch = per_extra_lane(workload, few, many, num_steps)
    return {
        "lanes": [few, many],
        "backbone_bytes": FLOAT * sum(each.numel() for each in model.parameters() if not each.requires_grad),
        "adapter_share_bytes": share,
        "adapters_at_rest_times_share": round(adapters["at_rest"] / share, 2),
        "adapters_at_peak_times_share": round(adapters["peak"] / share, 2),
        "adapters_at_first_step_times_share": round(adapters["first_step"] / share, 2),
        "batch_at_peak_bytes": batch["peak"],
        "batch_at_first_step_bytes": batch["first_step"],
        "batch_activation_bytes": activation_bytes(workload),
    }


def main() -> None:
    options = parse()
    sizes: dict[str, Any] = {
        "rank": options.rank,
        "batch_size": options.batch_size,
        "window": options.window,
    }
    if options.quick:
        sizes |= {"width": 64, "num_layers": 2, "window": 8}
        options.steps, options.lanes = 12, 6
    workload = LoraCharlm(LoraCharlm.Parameters(**sizes))
    if not options.memory:
        paths: list[str] = []

        def hear(event: object) -> None:
            if isinstance(event, EngineChosen):
                paths.append(f"{event.path}, {event.num_lanes} at once")

        answer = tune(
            workload,
            num_trials=4,
            num_seeds=2,
            num_confirm_seeds=0,
            num_steps=options.steps,
            lanes=8,
            on_event=hear,
        )
        print(
            json.dumps(
                {"path": paths[-1], "verdict": answer.verdict, "setting": str(answer.setting or "none")}
            )
        )
    print(json.dumps(memory(workload, 2, options.lanes, options.steps)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", action="store_true", help="measure memory only")
    parser.add_argument("--lanes", type=int, default=16, help="lanes of the larger measurement, more than 2")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--batch-size", type=int, default=4, help="windows per training batch")
    parser.add_argument("--window", type=int, default=32, help="characters per window")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a full run")
    parser.add_argument("--quick", action="store_true", help="a small backbone, few steps and lanes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
