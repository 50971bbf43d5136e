"""Why a workload can't be trained as one batched program; it is trained one lane at a time then."""

from __future__ import annotations


class NotBatchableError(Exception):
    """The lanes of this workload can't share one program.

    Never leaves `tuner.training`: the engine trains one lane at a time and tells the reason.

    Attributes:
        reason: a sentence for people that names what stands in the way and what to change.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
