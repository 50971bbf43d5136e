"""What `cliptune check` says of one config value: values only, which the formats print and nothing changes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tuner.spec import ClipSetting


class CheckVerdict(StrEnum):
    """How a config's value stands to the recommendation."""

    #: Within the recommended range, or *off* where off is recommended.
    INSIDE = "inside"
    #: Out of it.
    OUTSIDE = "outside"
    #: Out of it, and measured to be worse by more than the difference that matters.
    REGRESSION = "regression"
    #: The code no longer behaves as it did when the recommendation was found.
    DRIFT = "drift"
    #: Clipping makes no difference here: a full answer.
    NO_DIFFERENCE = "no_difference"
    #: The study had too few seeds to tell.
    INCONCLUSIVE = "inconclusive"
    #: Nothing is stored, or nothing that this value can be compared with.
    NO_RECOMMENDATION = "no_recommendation"


class Severity(StrEnum):
    """What a verdict does to a pipeline."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(reversed(Severity)).index(self)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A clip value found in a config file.

    Attributes:
        file: its path, as the report shows it: relative to the repository, with forward slashes.
        line: of the value, from 1.
        column: likewise.
        framework: what people call the framework; None for a key that no framework is known for.
        key: what the value is called, as ``--key`` takes it.
        spelled: the value as it stands in the file, or the default of an absent key.
        setting: the same as a setting; *off* is the method ``none``, None a value that is none of ours.
        is_implicit: whether the key is absent and the framework's default holds.
        off_spelled: how *off* is written there.
        obstacle: why ``setting`` is None, as the end of a sentence.
    """

    file: str
    line: int
    column: int
    framework: str | None
    key: str
    spelled: str
    setting: ClipSetting | None
    is_implicit: bool = False
    off_spelled: str = "off"
    obstacle: str = ""


@dataclass(frozen=True)
class Drift:
    """What a probe of the code as it is now showed.

    Attributes:
        has_drifted: whether its gradient norms no longer match those of the recommendation.
        reason: how they compare, with the figures, as a sentence.
        is_settled: whether the probe could tell; a drift is settled.
    """

    has_drifted: bool
    reason: str
    is_settled: bool = True


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How much worse than a baseline a value is, as the study measured it; positive is worse.

    Attributes:
        setting: what was measured: the value itself, or the nearest one.
        is_exact: whether it is the value itself.
        baseline: what it was compared with.
        mean: mean difference of the objective; None with fewer than two common seeds.
        low: lower end of its 95 % interval.
        high: upper end.
        num_pairs: seeds in which both have a value.
        num_seeds: seeds of the setting that ended with a value.
        num_diverged: seeds of the setting that diverged.
        is_fresh: whether the seeds are ones that the search never saw.
    """

    setting: ClipSetting
    is_exact: bool
    baseline: ClipSetting
    mean: float | None
    low: float | None
    high: float | None
    num_pairs: int
    num_seeds: int
    num_diverged: int
    is_fresh: bool


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict on one config value; every number in it is the number that was judged.

    Attributes:
        checked: the value.
        verdict: how it stands to the recommendation.
        severity: what that does to the pipeline, by the caller's rules.
        title: the verdict in a few words.
        sentence: the verdict with its figures, for people.
        value: the threshold that was judged; None for *off*, and for a value that is no setting.
        low: lowest recommended threshold, tolerance included; None unless a threshold is recommended.
        high: highest, likewise.
        recommended: the setting to use; None without a recommendation, with an unsettled one, and with one that the
            value can't be compared with.
        recommended_spelled: the same as it would be written into the file; empty where that is None.
        evidence: how much worse the value is; None if the study did not measure it.
        margin: the difference of the objective that matters; None without a recommendation.
        objective: name of the minimized number; empty without a recommendation.
        num_seeds: seeds that the recommendation rests on.
        more_seeds: further seeds that would about settle an inconclusive study.
        workload: what was trained; empty without a recommendation.
        study_id: of the recommendation; empty without one.
        study_url: where a person reads about the study; empty without such a page.
        age_days: whole days since the recommendation was found.
        is_stale: whether that is more than the caller allows.
    """

    checked: Checked
    verdict: CheckVerdict
    severity: Severity
    title: str
    sentence: str
    value: float | None
    low: float | None = None
    high: float | None = None
    recommended: ClipSetting | None = None
    recommended_spelled: str = ""
    evidence: Evidence | None = None
    margin: float | None = None
    objective: str = ""
    num_seeds: int = 0
    more_seeds: int | None = None
    workload: str = ""
    study_id: str = ""
    study_url: str = ""
    age_days: int | None = None
    is_stale: bool = False
