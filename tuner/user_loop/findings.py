"""What a check of a workload found: plain values, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How a finding stands: as it should be, worth knowing, or to be repaired.
Standing = Literal["ok", "note", "fix"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: what, in a word or two, for example ``seeds``.
        standing: see `Standing`.
        text: what was seen, as a sentence.
        remedy: what to change, as a sentence; empty unless there is something to do.
    """

    about: str
    standing: Standing
    text: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A workload was looked at.

    Attributes:
        workload: as it was named.
        form: ``class`` or ``function``.
        num_steps: optimizer steps of a full run of the check.
        device: where it trained.
        findings: in the order in which they were looked at.
        lanes_per_second: optimizer steps per second over all lanes as one program; None if not measured.
        solo_per_second: the same one lane at a time.
        peak_bytes: most memory that the process, or the device, held.
        data_share: share of the training time that making batches took, in [0, 1]; None for functions.
    """

    workload: str
    form: Literal["class", "function"]
    num_steps: int
    device: str
    findings: tuple[Finding, ...]
    lanes_per_second: float | None = None
    solo_per_second: float | None = None
    peak_bytes: int | None = None
    data_share: float | None = None
    kind: Literal["checked"] = "checked"

    @property
    def num_to_fix(self) -> int:
        """How many findings are to be repaired."""
        return sum(each.standing == "fix" for each in self.findings)
