"""What a framework's trainer must be like to be clipped from outside."""

from __future__ import annotations

from tuner.errors import TunerError


class TrainerSetupError(TunerError, ValueError):
    """A trainer is set up so that our clipping would not be what trains: applied twice, never, or to a part.

    Attributes:
        part: what of the set-up, in the framework's spelling, for example ``Trainer(gradient_clip_val=1.0)``.
        reason: what is wrong with it and what to change, as a sentence without its subject.
    """

    code = "trainer_setup"

    def __init__(self, part: str, reason: str) -> None:
        self.part = part
        self.reason = reason
        super().__init__(f"{part} {reason}")
