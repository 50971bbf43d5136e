"""What the clipper of a user's own loop refuses, and what it only warns of."""

from __future__ import annotations

from tuner.errors import TunerError


class CliptuneWarning(UserWarning):
    """Something that a training run goes on without: the service, a recommendation, a monitor."""


class NonFiniteGradientError(TunerError, RuntimeError):
    """A gradient's norm is NaN or infinite, and the caller wanted to be told.

    Attributes:
        norm: the norm.
    """

    code = "gradient_not_finite"

    def __init__(self, norm: float) -> None:
        self.norm = norm
        super().__init__(
            f"the gradient's norm is {norm}, and error_if_nonfinite is set: look at this step's loss and data, or "
            "leave error_if_nonfinite out; the gradient is then left as it is"
        )


class ParametersChangedError(TunerError, ValueError):
    """A clipper that remembers earlier steps was called with other parameters.

    Attributes:
        setting: the clipper's setting, as text.
    """

    code = "parameters_changed"

    def __init__(self, setting: str) -> None:
        self.setting = setting
        super().__init__(
            f"{setting} remembers the gradients of earlier steps, and these are not the parameters that it was called "
            "with before: make one clipper for each set of parameters"
        )


class ClipperStateError(TunerError, ValueError):
    """A state that is to be loaded is not this clipper's.

    Attributes:
        reason: what is wrong with it, as a sentence without its subject.
    """

    code = "bad_clipper_state"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"this is not the state of the clipper: {reason}")
