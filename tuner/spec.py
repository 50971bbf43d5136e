"""What a study asks: frozen values with their bounds, importable without torch.

`ClipSetting` is one candidate, `StudySpec` the whole question. The same classes validate a library call, a CLI
flag and an HTTP body, so a bound is written once. Invalid values raise `tuner.errors.SpecError`, which names the field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tuner.errors import SpecError
from tuner.methods import METHODS, OFF, Method, get_method
from tuner.parameters import ParameterValue

MAX_TRIALS = 1000
MAX_SEEDS = 32
MAX_CONFIRM_SEEDS = 64
#: Least and greatest factor on a workload's learning rate.
RATE_SCALES = (1e-4, 1e4)
MAX_STEPS = 10_000_000
MAX_LANES = 100_000
#: Longest name of an objective, in characters.
MAX_OBJECTIVE = 100
#: What an external study minimizes unless it says otherwise.
EXTERNAL_OBJECTIVE = "val_loss"


@dataclass(frozen=True, kw_only=True)
class ClipSetting:
    """One clipping method with its threshold: one candidate of a study.

    Attributes:
        method: a name in `tuner.methods.METHODS`.
        threshold: the tuned number in the method's own unit, between its bounds; None exactly for ``none``.
        learning_rate_scale: factor on the workload's learning rate, 1e-4 to 1e4; 1 leaves it as it is.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    method: str
    threshold: float | None = None
    learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        method = get_method(self.method)
        _require_rate_scale("learning_rate_scale", self.learning_rate_scale)
        if not method.has_threshold:
            if self.threshold is not None:
                raise SpecError(
                    "threshold", f"must be left out for method {self.method!r}, got {self.threshold}"
                )
            return
        if self.threshold is None:
            raise SpecError(
                "threshold",
                f"is required for method {self.method!r}: give {method.threshold_name} > {method.low_bound:g}",
            )
        _require_threshold("threshold", self.threshold, method, remedy="; use method 'none' for off")

    @property
    def is_off(self) -> bool:
        """Whether this is *no clipping*."""
        return self.method == OFF

    def __str__(self) -> str:
        text = self.method if self.threshold is None else f"{self.method}:{self.threshold:g}"
        return text if self.learning_rate_scale == 1 else f"{text}@{self.learning_rate_scale:g}"

    @classmethod
    def parse(cls, text: str) -> ClipSetting:
        """Read the form that `str` writes, for example ``global_norm:0.35``, ``none`` or ``global_norm:0.35@0.5``.

        Args:
            text: method, after a colon the threshold, and after an @ the factor on the learning rate.

        Returns:
            The setting.

        Raises:
            SpecError: if a part is not a number, or is out of bounds.

        Example:
            >>> ClipSetting.parse("global_norm:0.35@0.5")
            ClipSetting(method='global_norm', threshold=0.35, learning_rate_scale=0.5)
        """
        setting, at, scale = text.partition("@")
        method, colon, threshold = setting.partition(":")
        return cls(
            method=method,
            threshold=_number("threshold", threshold) if colon else None,
            learning_rate_scale=_number("learning_rate_scale", scale) if at else 1.0,
        )


#: How many lanes train as one batch: ``auto`` measures, ``solo`` trains one at a time, a number is the most.
Lanes = int | Literal["auto", "solo"]


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """One question: which of these clip settings should this workload train with?

    Attributes:
        workload: name of a registered workload; any name if ``external``.
        parameters: values for the workload's own parameters; the rest keep their defaults.
        methods: clipping methods to search, without ``none``, which is always a candidate.
        current: the setting in use today; always a candidate when given.
        threshold_low: lower end of the search range in the method's unit; None derives it from the probe.
        threshold_high: upper end, likewise.
        num_trials: clip settings to evaluate, *off* and ``current`` included, 2 to 1000.
        num_seeds: seeds per setting during the search, the same for all, 2 to 32 (one seed has no error bar).
        num_confirm_seeds: fresh seeds, which the search never saw, on which the leader, *off* and ``current`` are
            compared at the end: 2 to 64, or 0 to judge on the search's own seeds.
        num_steps: optimizer steps of a full run, 1 to 10 million.
        cohort_size: settings trained together, 1 to 1000; later cohorts learn from earlier ones.
        num_rungs: steps at which trials are compared, the last one included, 1 to 10.
        reduction_factor: ratio between two neighbouring rungs, 2 to 10.
        learning_rate_low: lowest factor on the workload's learning rate, 1e-4 to 1e4, to tune the rate together with
            the threshold; None leaves the rate alone.
        learning_rate_high: highest factor, likewise.
        effect: relative difference of the objective that matters to you, >= 0 (0.01 = 1 %).
        divergence_factor: a lane whose validation loss passes this multiple of its value before the first
            step is diverged, > 1.
        seed: seed of the search; the training seeds are 0, 1, ... for every study.
        lanes: how many lanes (settings x seeds) train as one batched program: ``auto`` measures what is fastest and
            fits, ``solo`` trains one at a time, a number from 1 to 100,000 is the most. The answer does not depend
            on it, up to rounding.
        external: whether trials are trained by whoever asks for them (``cliptune run``, or ask and tell over HTTP)
            instead of a worker; ``workload`` and ``parameters`` then say what is trained, in your own words.
        objective: name of the number that external trainings report, to be minimized; None is ``val_loss``. Workloads
            that workers train have their own.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    workload: str
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    methods: tuple[str, ...] = ("global_norm",)
    current: ClipSetting | None = None
    threshold_low: float | None = None
    threshold_high: float | None = None
    num_trials: int = 16
    num_seeds: int = 3
    num_confirm_seeds: int = 6
    learning_rate_low: float | None = None
    learning_rate_high: float | None = None
    num_steps: int = 400
    cohort_size: int = 8
    num_rungs: int = 3
    reduction_factor: int = 3
    effect: float = 0.01
    divergence_factor: float = 3.0
    seed: int = 0
    lanes: Lanes = "auto"
    external: bool = False
    objective: str | None = None

    def __post_init__(self) -> None:
        if not self.workload:
            raise SpecError("workload", "must not be empty: name one of GET /v1/workloads")
        _require_methods(self.methods)
        _require_between("num_trials", self.num_trials, 2, MAX_TRIALS)
        _require_between("num_seeds", self.num_seeds, 2, MAX_SEEDS)
        if self.num_confirm_seeds != 0:
            _require_between("num_confirm_seeds", self.num_confirm_seeds, 2, MAX_CONFIRM_SEEDS, "0, or ")
        _require_between("num_steps", self.num_steps, 1, MAX_STEPS)
        _require_between("cohort_size", self.cohort_size, 1, MAX_TRIALS)
        _require_between("num_rungs", self.num_rungs, 1, 10)
        _require_between("reduction_factor", self.reduction_factor, 2, 10)
        _require_between("seed", self.seed, 0, 2**32 - 1)
        if not (math.isfinite(self.effect) and self.effect >= 0):
            raise SpecError("effect", f"must be finite and >= 0, got {self.effect}")
        if not (math.isfinite(self.divergence_factor) and self.divergence_factor > 1):
            raise SpecError("divergence_factor", f"must be finite and > 1, got {self.divergence_factor}")
        if self.lanes not in ("auto", "solo"):
            if isinstance(self.lanes, str):
                raise SpecError("lanes", f"must be 'auto', 'solo' or a number, got {self.lanes!r}")
            _require_between("lanes", self.lanes, 1, MAX_LANES)
        if self.objective is not None and not (self.external and 1 <= len(self.objective) <= MAX_OBJECTIVE):
            reason = f"must have 1 to {MAX_OBJECTIVE} characters, got {len(self.objective)}"
            raise SpecError(
                "objective",
                reason if self.external else "is the workload's own: leave it out, or set external",
            )
        self._require_range()
        self._require_learning_rates()

    def _require_learning_rates(self) -> None:
        low, high = self.learning_rate_low, self.learning_rate_high
        for name, bound in (("learning_rate_low", low), ("learning_rate_high", high)):
            if bound is not None:
                _require_rate_scale(name, bound)
        if (low is None) != (high is None):
            missing = "learning_rate_low" if low is None else "learning_rate_high"
            raise SpecError(
                missing, "is missing: give both ends of the range, or neither to leave the rate alone"
            )
        if low is not None and high is not None and low >= high:
            raise SpecError("learning_rate_low", f"must be < learning_rate_high, got {low} and {high}")

    def _require_range(self) -> None:
        for name in ("threshold_low", "threshold_high"):
            bound = getattr(self, name)
            if bound is not None:
                _require_threshold(name, bound, get_method(self.methods[0]))
        if (self.threshold_low is None) != (self.threshold_high is None):
            missing = "threshold_low" if self.threshold_low is None else "threshold_high"
            raise SpecError(
                missing, "is missing: give both ends of the range, or neither to derive it from the probe"
            )
        if self.threshold_low is not None and self.threshold_high is not None:
            if self.threshold_low >= self.threshold_high:
                raise SpecError(
                    "threshold_low",
                    f"must be < threshold_high, got {self.threshold_low} and {self.threshold_high}",
                )
            if len(self.methods) > 1:
                raise SpecError(
                    "threshold_low",
                    "needs a single method, because methods differ in unit; leave the range out",
                )
        elif self.external and any(get_method(each).scale == "max_abs" for each in self.methods):
            raise SpecError(
                "threshold_low",
                f"and threshold_high are needed for {', '.join(self.methods)}: external trainings report norms, not "
                "the largest element",
            )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds, the same for every trial, which makes comparisons paired."""
        return tuple(range(self.num_seeds))

    @property
    def tunes_learning_rate(self) -> bool:
        """Whether the learning rate is searched together with the threshold."""
        return self.learning_rate_low is not None

    @property
    def rung_steps(self) -> tuple[int, ...]:
        """Steps at which trials are compared, ascending and ending at ``num_steps``.

        Example:
            >>> StudySpec(workload="w", num_steps=400, num_rungs=3, reduction_factor=3).rung_steps
            (44, 133, 400)
        """
        steps = {max(1, self.num_steps // self.reduction_factor**level) for level in range(self.num_rungs)}
        return tuple(sorted(steps))

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values, every default written out; `study_spec` reads it back."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal for equal questions, hexadecimal."""
        return canonical_digest(self.to_json())

    @property
    def fingerprint(self) -> str:
        """Identifies what is trained (workload and parameters), whatever the search; hexadecimal, 16 characters."""
        return workload_fingerprint(self.workload, self.parameters)


def study_spec(document: Mapping[str, Any]) -> StudySpec:
    """Read what `StudySpec.to_json` wrote.

    Args:
        document: the JSON object.

    Returns:
        The spec.

    Raises:
        SpecError: if a field is unknown or out of bounds.
    """
    known = {each.name for each in dataclasses.fields(StudySpec)}
    for name in document:
        if name not in known:
            raise SpecError(name, f"is no field of a study; the fields are {', '.join(sorted(known))}")
    values = dict(document)
    if values.get("current") is not None:
        values["current"] = ClipSetting(**values["current"])
    if "methods" in values:
        values["methods"] = tuple(values["methods"])
    return StudySpec(**values)


def canonical_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 over sorted, compact JSON.

    Args:
        document: JSON values; a NaN or an infinity has no canonical form.

    Returns:
        64 hexadecimal characters.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def workload_fingerprint(workload: str, parameters: Mapping[str, ParameterValue]) -> str:
    """Identify a workload with its resolved parameters.

    Args:
        workload: its name.
        parameters: all its parameters, defaults written out.

    Returns:
        16 hexadecimal characters.
    """
    return canonical_digest({"workload": workload, "parameters": dict(parameters)})[:16]


def _require_between(name: str, value: int, low: int, high: int, exception: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(name, f"must be {exception}a whole number between {low} and {high}, got {value}")


def _require_rate_scale(name: str, value: float) -> None:
    if not RATE_SCALES[0] <= value <= RATE_SCALES[1]:
        low, high = RATE_SCALES
        raise SpecError(
            name, f"must be a factor on the learning rate between {low:g} and {high:g}, got {value}"
        )


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        form = "METHOD:THRESHOLD, or METHOD:THRESHOLD@FACTOR for another learning rate"
        raise SpecError(name, f"must be a number, got {text!r}; write {form}") from None


def _require_threshold(name: str, value: float, method: Method, *, remedy: str = "") -> None:
    if math.isfinite(value) and method.low_bound < value < method.high_bound:
        return
    bounds = f"finite and > {method.low_bound:g}"
    if math.isfinite(method.high_bound):
        bounds = f"> {method.low_bound:g} and < {method.high_bound:g}"
    subject = "" if method.scale is not None else f" for the {method.threshold_name} of {method.name!r}"
    raise SpecError(name, f"must be {bounds}{subject}, got {value}{remedy}")


def _require_methods(methods: tuple[str, ...]) -> None:
    if not methods:
        raise SpecError("methods", "must name at least one clipping method, for example global_norm")
    if len(set(methods)) != len(methods):
        raise SpecError("methods", f"must not repeat a method, got {', '.join(methods)}")
    for name in methods:
        if name not in METHODS:
            get_method(name)
        if name == OFF:
            raise SpecError("methods", "must not contain 'none': off is always a candidate")


OFF_SETTING = ClipSetting(method=OFF)
