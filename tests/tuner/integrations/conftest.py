"""Trials for the adapters: the handle that training functions get, with the other end in the test's hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tuner.inline import Clipper
from tuner.spec import ClipSetting
from tuner.user_loop.trial import FunctionTrial


@dataclass
class Told:
    """What a trial was told, and when it answers that it is pruned."""

    prune_at: int | None = None
    stop_after_clips: int | None = None
    reports: list[tuple[int, float]] = field(default_factory=list)

    def on_report(self, step: int, value: float) -> str | None:
        self.reports.append((step, value))
        return f"pruned at step {step}" if self.prune_at is not None and step >= self.prune_at else None

    def on_clip(self, num_steps: int) -> str | None:
        return "measured enough" if num_steps == self.stop_after_clips else None


@pytest.fixture
def make_trial() -> Callable[..., tuple[FunctionTrial, Told]]:
    """A trial, and what it is told."""

    def make(
        setting: str = "global_norm:0.5",
        *,
        prune_at: int | None = None,
        stop_after_clips: int | None = None,
        num_steps: int = 8,
    ) -> tuple[FunctionTrial, Told]:
        told = Told(prune_at, stop_after_clips)
        trial = FunctionTrial(
            setting=ClipSetting.parse(setting),
            seed=0,
            parameters={},
            num_steps=num_steps,
            clipper=Clipper.from_setting(setting),
            on_clip=told.on_clip,
            on_report=told.on_report,
        )
        return trial, told

    return make
