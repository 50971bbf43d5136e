"""The Lightning callback under the real Trainer of both packages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from math import nan
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import FSDPPrecision, MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tuner.inline import Clipper
from tuner.integrations.errors import TrainerSetupError
from tuner.integrations.lightning import ClipCallback, require_clippable
from tuner.tuning import tune

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning's, about torch's pytree.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

NUM_BATCHES = 16


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def package(request: pytest.FixtureRequest) -> Any:
    return import_module(request.param)


def module_of(package: Any) -> type[Any]:
    """A small regression in the package's own module class."""

    class Regression(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, **optimizer: Any) -> None:
            super().__init__()
            self.optimizer = {"lr": 0.05, "momentum": 0.9, **optimizer}
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
            self.seen: list[Tensor] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self._loss(batch)

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", self._loss(batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), **self.optimizer)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            grads = [each.grad for each in self.parameters() if each.grad is not None]
            self.seen.append(torch.nn.utils.get_total_norm(grads).clone())

        def _loss(self, batch: list[Tensor]) -> Tensor:
            inputs, targets = batch
            return nn.functional.mse_loss(self.model(inputs).squeeze(1), targets)

    return Regression


Regression = module_of(pl)


def loader(seed: int = 0, num_batches: int = NUM_BATCHES) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8 * num_batches, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, 3 * inputs.sum(dim=1)), batch_size=8)


def trainer_of(package: Any = pl, *callbacks: Any, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 8,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return package.Trainer(callbacks=list(callbacks), **defaults | options)


def every(num_batches: int) -> dict[str, Any]:
    """Trainer options: validate after so many batches."""
    return {"val_check_interval": num_batches, "check_val_every_n_epoch": None}


def weights(module: nn.Module) -> list[Tensor]:
    return [each.detach().clone() for each in module.parameters()]


def are_equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(one, other) for one, other in zip(weights(first), weights(second), strict=True))


# ---- clipping ----


@pytest.mark.parametrize("accumulate", [1, 2])
def test_is_the_trainers_own_clipping_bit_for_bit(package: Any, accumulate: int) -> None:
    kind = module_of(package)
    options = {"accumulate_grad_batches": accumulate, "max_steps": NUM_BATCHES // accumulate}
    theirs, ours, unclipped = kind(), kind(), kind()
    clipper = Clipper.from_setting("global_norm:0.5")
    trainer_of(package, gradient_clip_val=0.5, **options).fit(theirs, loader())
    trainer_of(package, ClipCallback(clipper), **options).fit(ours, loader())
    trainer_of(package, **options).fit(unclipped, loader())
    assert are_equal(ours, theirs)
    assert not are_equal(ours, unclipped)
    assert clipper.num_steps == NUM_BATCHES // accumulate, "once per optimizer step"
    assert clipper.record().clip_fraction == 1


def test_value_clipping_is_the_trainers_bit_for_bit() -> None:
    theirs, ours = Regression(), Regression()
    trainer_of(pl, gradient_clip_val=0.1, gradient_clip_algorithm="value").fit(theirs, loader())
    trainer_of(pl, ClipCallback(Clipper.from_setting("value:0.1"))).fit(ours, loader())
    assert are_equal(ours, theirs)


def test_off_changes_nothing_and_measures() -> None:
    plain, ours = Regression(), Regression()
    clipper = Clipper.from_setting("none")
    trainer_of().fit(plain, loader())
    trainer_of(pl, ClipCallback(clipper)).fit(ours, loader())
    assert are_equal(ours, plain)
    assert clipper.drain_norms() == [float(norm) for norm in plain.seen]


def test_hooks_before_the_step_see_gradients_before_clipping() -> None:
    ours = Regression()
    callback = ClipCallback(Clipper.from_setting("global_norm:0.01"))
    trainer = trainer_of(pl, callback)
    trainer.fit(ours, loader())
    norms = callback.clipper.drain_norms()
    assert norms == [float(norm) for norm in ours.seen]
    assert min(norms) > 0.01
    assert float(trainer.callback_metrics["pre_clip_norm"]) == norms[-1]


def test_norm_is_logged_only_if_wanted() -> None:
    trainer = trainer_of(pl, ClipCallback(Clipper.from_setting("none"), logs_norm=False))
    trainer.fit(Regression(), loader())
    assert "pre_clip_norm" not in trainer.callback_metrics


def test_losses_of_accumulated_batches_are_recorded_as_their_mean() -> None:
    class Losses(Regression):  # type: ignore[misc, valid-type]
        losses: ClassVar[list[float]] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.losses.append(float(loss.detach()))
            return loss

    module, clipper = Losses(), Clipper.from_setting("none")
    trainer_of(pl, ClipCallback(clipper), accumulate_grad_batches=4, max_steps=1).fit(module, loader())
    record = clipper.record()
    assert record.loss is not None
    assert record.loss.last == pytest.approx(sum(module.losses) / 4)


def test_fp16_is_clipped_after_unscaling() -> None:
    """A loss scale of 1024 would show in the norms."""
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    half, full = Clipper.from_setting("global_norm:0.5"), Clipper.from_setting("global_norm:0.5")
    trainer_of(pl, ClipCallback(half), plugins=[plugin]).fit(Regression(), loader())
    trainer_of(pl, ClipCallback(full)).fit(Regression(), loader())
    assert half.drain_norms() == pytest.approx(full.drain_norms(), rel=0.02)
    record, expected = half.record().loss, full.record().loss
    assert record is not None and expected is not None
    assert record.mean == pytest.approx(expected.mean, rel=0.02)


def test_skipped_step_changes_neither_weights_nor_momentum() -> None:
    """The last batch's targets are a thousand times as large as the others'."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=generator)
    targets = inputs.sum(dim=1)
    targets[48:] *= 1000
    data = DataLoader(TensorDataset(inputs, targets), batch_size=16)
    clipper = Clipper.from_setting("skip_step:3", window=4)

    class Watched(Regression):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.history: list[list[Tensor]] = []

        def on_train_batch_end(self, *args: Any) -> None:
            buffers = [state["momentum_buffer"] for state in self.optimizers().state.values()]
            self.history.append([*weights(self), *(each.clone() for each in buffers)])

    module = Watched()
    trainer_of(pl, ClipCallback(clipper), max_steps=4).fit(module, data)
    before, after = module.history[-2:]
    assert bool(clipper.last.skipped)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert clipper.record().num_skipped == 1


def test_module_has_its_own_clipping_back() -> None:
    module = Regression()
    trainer_of(pl, ClipCallback(Clipper.from_setting("none"))).fit(module, loader())
    assert "configure_gradient_clipping" not in vars(module)

    class Broken(Regression):  # type: ignore[misc, valid-type]
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            raise RuntimeError("no data")

    broken = Broken()
    with pytest.raises(RuntimeError, match="no data"):
        trainer_of(pl, ClipCallback(Clipper.from_setting("none"))).fit(broken, loader())
    assert "configure_gradient_clipping" not in vars(broken)


def test_callbacks_that_copy_the_module_do_not_copy_the_trial(
    make_trial: Callable[..., Any],
) -> None:
    trial, _ = make_trial()
    copies = []

    class Copies(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            copies.append(copy.deepcopy(vars(pl_module)["configure_gradient_clipping"]))
            assert copies[0] is vars(pl_module)["configure_gradient_clipping"]

    trainer_of(pl, ClipCallback(trial), Copies()).fit(Regression(), loader())
    assert copies


def test_checkpoint_holds_what_the_method_remembers(tmp_path: Path) -> None:
    """Two epochs, and the second one again from the first one's checkpoint."""

    def fit(folder: str, clipper: Clipper, ckpt_path: Path | None = None) -> Any:
        saves = pl.callbacks.ModelCheckpoint(
            tmp_path / folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1
        )
        trainer = trainer_of(
            pl, ClipCallback(clipper), saves, enable_checkpointing=True, max_steps=-1, max_epochs=2
        )
        module = Regression()
        trainer.fit(module, loader(), ckpt_path=ckpt_path)
        return module

    whole, resumed = (Clipper.from_setting("zclip:1.5") for _ in range(2))
    uninterrupted = fit("whole", whole)
    continued = fit("resumed", resumed, tmp_path / "whole" / "epoch=0.ckpt")
    assert resumed.num_steps == whole.num_steps == 2 * NUM_BATCHES
    assert resumed.record() == whole.record()
    assert are_equal(continued, uninterrupted)


# ---- reporting and pruning ----


def test_reports_every_validation_and_no_sanity_check(package: Any, make_trial: Callable[..., Any]) -> None:
    trial, told = make_trial()
    callback = ClipCallback(trial)
    trainer = trainer_of(package, callback, **every(4))
    module = module_of(package)()
    trainer.fit(module, loader(), loader(seed=1, num_batches=2))
    assert [step for step, _ in told.reports] == [4, 8]
    assert told.reports[-1][1] == float(trainer.callback_metrics["val_loss"])
    assert (callback.pruned, callback.reason) == (False, None)
    # The final validation of a script tells nothing new.
    trainer.validate(module, loader(seed=1, num_batches=2), verbose=False)
    assert [step for step, _ in told.reports] == [4, 8]


def test_validation_before_training_is_reported_as_step_0(make_trial: Callable[..., Any]) -> None:
    trial, told = make_trial()
    trainer, module = trainer_of(pl, ClipCallback(trial), **every(8)), Regression()
    trainer.validate(module, loader(seed=1), verbose=False)
    trainer.fit(module, loader(), loader(seed=1))
    assert [step for step, _ in told.reports] == [0, 8]


@pytest.mark.parametrize("options", [{}, {"min_epochs": 3}, {"min_steps": 6, "max_steps": 8}])
def test_pruned_trial_ends_fit_without_an_exception(
    package: Any, options: dict[str, Any], make_trial: Callable[..., Any]
) -> None:
    trial, told = make_trial(prune_at=4)
    callback = ClipCallback(trial)
    trainer = trainer_of(package, callback, **every(2), **options)
    trainer.fit(module_of(package)(), loader(), loader(seed=1))
    assert trainer.global_step == 4
    assert [step for step, _ in told.reports] == [2, 4]
    assert (callback.pruned, callback.reason) == (True, "pruned at step 4")
    assert trainer.state.finished


def test_trial_pruned_before_training_trains_no_step(make_trial: Callable[..., Any]) -> None:
    trial, _ = make_trial(prune_at=0)
    trainer, module = trainer_of(pl, ClipCallback(trial)), Regression()
    trainer.validate(module, loader(seed=1), verbose=False)
    trainer.fit(module, loader(), loader(seed=1))
    assert trainer.global_step == 0


def test_trial_that_ends_while_clipping_ends_fit_too(make_trial: Callable[..., Any]) -> None:
    """A probe stops a function after a few gradients."""
    trial, _ = make_trial(stop_after_clips=3)
    callback = ClipCallback(trial)
    trainer = trainer_of(pl, callback)
    trainer.fit(Regression(), loader())
    assert trainer.global_step == 3
    assert callback.reason == "measured enough"


def test_nan_is_reported(make_trial: Callable[..., Any]) -> None:
    class Nan(Regression):  # type: ignore[misc, valid-type]
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", torch.tensor(nan))

    trial, told = make_trial()
    trainer_of(pl, ClipCallback(trial), **every(8)).fit(Nan(), loader(), loader(seed=1))
    assert [(step, value != value) for step, value in told.reports] == [(8, True)]


def test_another_metric_is_reported_by_its_name(make_trial: Callable[..., Any]) -> None:
    class Accurate(Regression):  # type: ignore[misc, valid-type]
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_error", torch.tensor(0.25))

    trial, told = make_trial()
    trainer_of(pl, ClipCallback(trial, monitor_metric="val_error"), **every(8)).fit(
        Accurate(), loader(), loader(seed=1)
    )
    assert told.reports == [(8, 0.25)]


def test_training_function_with_the_callback_is_tuned() -> None:
    """The probe ends each function after a few gradients; rungs prune, full runs end at the last step."""
    callbacks: list[ClipCallback] = []

    def train(trial: Any) -> None:
        callbacks.append(ClipCallback(trial))
        module = Regression(lr=0.05 * trial.learning_rate_scale)
        trainer = trainer_of(pl, callbacks[-1], max_steps=trial.num_steps, **every(8))
        trainer.fit(module, loader(), loader(seed=1))

    answer = tune(
        train, num_trials=2, num_seeds=2, num_confirm_seeds=0, num_steps=16, num_rungs=1, progress=False
    )
    assert (answer.num_trials, answer.objective, answer.lane_steps) == (2, "val_loss", 2 * 2 * 16)
    assert [each.clipper.num_steps for each in callbacks[-4:]] == [16] * 4


# ---- what is refused ----


def test_two_clippings_are_refused(package: Any) -> None:
    trainer = trainer_of(
        package, ClipCallback(Clipper.from_setting("global_norm:0.5")), gradient_clip_val=1.0
    )
    with pytest.raises(
        TrainerSetupError, match=r"Trainer\(gradient_clip_val=1.0\) clips too.*leave it out"
    ) as info:
        trainer.fit(module_of(package)(), loader())
    assert info.value.code == "trainer_setup"


def test_gradient_clip_val_of_zero_is_off() -> None:
    clipper = Clipper.from_setting("global_norm:0.5")
    trainer_of(pl, ClipCallback(clipper), gradient_clip_val=0).fit(Regression(), loader())
    assert clipper.num_steps == 8


def test_manual_optimization_is_refused() -> None:
    module = Regression()
    module.automatic_optimization = False
    with pytest.raises(
        TrainerSetupError, match=r"automatic_optimization is False.*between manual_backward and"
    ):
        trainer_of(pl, ClipCallback(Clipper.from_setting("none"))).fit(module, loader())


def test_module_with_clipping_of_its_own_is_refused(package: Any) -> None:
    class Own(module_of(package)):  # type: ignore[misc]
        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            pass

    with pytest.raises(TrainerSetupError, match=r"Own.configure_gradient_clipping clips too"):
        trainer_of(package, ClipCallback(Clipper.from_setting("none"))).fit(Own(), loader())


def test_two_callbacks_are_refused() -> None:
    clippers = [ClipCallback(Clipper.from_setting(text)) for text in ("none", "global_norm:1")]
    # Lightning itself keeps apart only callbacks of different state keys.
    clippers[1].__class__ = type("Another", (ClipCallback,), {})
    with pytest.raises(
        TrainerSetupError, match=r"another ClipCallback.configure_gradient_clipping clips too"
    ):
        trainer_of(pl, *clippers).fit(Regression(), loader())


def test_optimizer_that_unscales_by_itself_is_refused_under_fp16() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    with pytest.raises(
        TrainerSetupError, match=r"SGD unscales fp16 gradients inside of its step.*fused=False"
    ):
        trainer_of(pl, ClipCallback(Clipper.from_setting("none")), plugins=[plugin]).fit(
            Regression(fused=True), loader()
        )


def test_sharded_precision_is_refused() -> None:
    trainer = trainer_of(pl, plugins=[FSDPPrecision("32-true")])
    with pytest.raises(TrainerSetupError, match=r"FSDPPrecision clips by itself or splits"):
        require_clippable(trainer, Regression())


def test_metric_that_is_not_logged_is_told_with_those_that_are(make_trial: Callable[..., Any]) -> None:
    trial, _ = make_trial()
    callback = ClipCallback(trial, monitor_metric="val_error")
    with pytest.raises(
        TrainerSetupError, match=r"monitor_metric='val_error' was not logged.*pre_clip_norm, val_loss"
    ):
        trainer_of(pl, callback, **every(8)).fit(Regression(), loader(), loader(seed=1))
