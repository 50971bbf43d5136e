"""Errors of the science package, drawn as a tree.

TunerError
|-- SpecError(ValueError)                a study, setting or parameter out of its bounds
|-- UnknownMethodError(LookupError)      no clipping method of that name
|-- UnknownWorkloadError(LookupError)    no workload of that name
|-- NoTrialsError(ValueError)            evidence was asked for before any trial ended
|-- ProbeError(ArithmeticError)          the probe found no gradient to scale thresholds by
|-- UnsupportedModelError(ValueError)    a model that no engine can train under clip settings
|-- CheckpointError(ValueError)          a checkpoint that does not verify, or is of another cohort
|-- LaneError(RuntimeError)              a workload's own code raised while a lane trained
`-- TrialPruned(TunerError)              asks a user's own training loop to stop here

Each error carries the facts in fields and builds its own sentence: what was wrong, the value, the bound,
the remedy. ``code`` is stable: the service answers with it over HTTP. Divergence of a training run is not
here: it is data (see `tuner.evidence`).
"""

from __future__ import annotations

from collections.abc import Iterable


class TunerError(Exception):
    """Base of everything this package raises on purpose."""

    code = "tuner_error"


class SpecError(TunerError, ValueError):
    """A field of a specification is out of its bounds.

    Attributes:
        field: the caller's spelling of the field, for example ``num_trials``; dots for nesting.
        reason: what was wrong, the value and the bound, as one sentence without the field's name.
    """

    code = "invalid_spec"

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field} {reason}")


class UnknownMethodError(TunerError, LookupError):
    """No clipping method is registered under this name."""

    code = "unknown_method"

    def __init__(self, method: str, known: Iterable[str]) -> None:
        self.method = method
        self.known = tuple(sorted(known))
        super().__init__(f"no clipping method is called {method!r}; known methods: {', '.join(self.known)}")


class UnknownWorkloadError(TunerError, LookupError):
    """No workload is registered under this name."""

    code = "unknown_workload"

    def __init__(self, workload: str, known: Iterable[str]) -> None:
        self.workload = workload
        self.known = tuple(sorted(known))
        known_names = (
            ", ".join(self.known)
            or "none yet (start a worker: it registers its workloads; CLIPTUNE_WORKLOADS names yours)"
        )
        super().__init__(f"no workload is called {workload!r}; known workloads: {known_names}")


class NoTrialsError(TunerError, ValueError):
    """Evidence was asked of a study in which no trial has ended."""

    code = "no_trials"

    def __init__(self) -> None:
        super().__init__(
            "no trial has ended yet, so there is nothing to recommend: wait for the first cohort"
        )


class ProbeError(TunerError, ArithmeticError):
    """The probe measured no usable gradient norm, so no search range can be derived from it.

    Attributes:
        reason: what was measured, as one sentence.
        remedy: what to change, as a sentence without its subject.
    """

    code = "probe_failed"

    def __init__(
        self, reason: str, remedy: str = "check the loss and the data of the first training batches"
    ) -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}; {remedy}")


class UnsupportedModelError(TunerError, ValueError):
    """A workload's model can't be trained under clip settings.

    Attributes:
        part: what of the model, for example ``module 'embedding'``.
        reason: what is wrong with it and what to change, as a sentence without its subject.
    """

    code = "unsupported_model"

    def __init__(self, part: str, reason: str) -> None:
        self.part = part
        self.reason = reason
        super().__init__(f"{part} {reason}")


class CheckpointError(TunerError, ValueError):
    """A checkpoint can't be used: incomplete, changed, or of something else. Training starts at step 0 without it.

    Attributes:
        path: the checkpoint's folder.
        reason: what is wrong with it.
    """

    code = "bad_checkpoint"

    def __init__(self, path: object, reason: str) -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(f"checkpoint {path} {reason}; delete it to train from the first step")


class TrialPruned(TunerError):
    """Raised by ``trial.report`` to end a user's own training loop early: let it pass, and clean up as usual.

    Attributes:
        reason: why nothing more is to be trained, for example ``pruned at step 44`` or ``the study was cancelled``.
    """

    code = "trial_pruned"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"stop training this trial: {reason}")


class LaneError(TunerError, RuntimeError):
    """A workload's own code raised while a lane trained; the original error is ``__cause__``.

    Attributes:
        trial_id: the trial to blame.
        seed: its training seed.
        step: optimizer steps the lane had taken.
    """

    code = "lane_failed"

    def __init__(self, trial_id: str, seed: int, step: int, cause: BaseException) -> None:
        self.trial_id = trial_id
        self.seed = seed
        self.step = step
        super().__init__(
            f"trial {trial_id} with seed {seed} failed at step {step}: {type(cause).__name__}: {cause}"
        )
