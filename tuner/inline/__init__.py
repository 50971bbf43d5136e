"""A clip setting in a training loop of your own: `Clipper` stands where ``clip_grad_norm_`` stood."""

from __future__ import annotations

from tuner.inline.arguments import Parameters as Parameters
from tuner.inline.clipper import Clipper as Clipper
from tuner.inline.errors import CliptuneWarning as CliptuneWarning
from tuner.inline.methods import ClipOutcome as ClipOutcome
