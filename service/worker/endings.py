"""How driving a study may end other than with its recommendation; only `service.worker.worker` catches these.

A lost lease is the fifth, `service.errors.LeaseLostError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tuner.evidence import Stage, Trial, TrialState


class CancelRequestedError(Exception):
    """Somebody cancelled the study."""


class ShutdownRequestedError(Exception):
    """The worker has been asked to stop."""


class StudyFailedError(Exception):
    """The study can't succeed; the message says why. Trying again would not help."""


class NoDeviceError(Exception):
    """Every slot of the worker is set aside; the message says why. Another worker may do better."""


def refuse_hopeless(
    trials: Sequence[Trial], *, num_trials: int, limit: int, last_error: Callable[[Trial], str]
) -> None:
    """End a study of which too much has failed.

    Args:
        trials: of the study.
        num_trials: settings that its search may try.
        limit: trials that may fail.
        last_error: why a trial failed, in a line.

    Raises:
        StudyFailedError: if more failed, or all that the search may try.
    """
    failed = [trial for trial in trials if trial.state is TrialState.FAIL]
    if not failed:
        return
    last = f"the last one, {failed[-1].setting}, ended with: {last_error(failed[-1])}"
    if len(failed) > limit:
        raise StudyFailedError(
            f"{len(failed)} trials failed and this server allows {limit} (CLIPTUNE_MAX_FAILED_TRIALS); {last}"
        )
    searched = [trial for trial in failed if trial.stage is Stage.SEARCH]
    if len(searched) == num_trials:
        raise StudyFailedError(f"all {len(searched)} trials failed; {last}")
