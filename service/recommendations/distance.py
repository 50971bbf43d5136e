"""How far apart two trainings are, for the question whether a threshold carries over: pure.

The distance is a sum of terms, each of which is 0 for what is equal:

- size: decades (powers of ten) between the numbers of parameters, plus `OTHER_MODEL`; nothing if the models have the
  same signature;
- learning rate: decades between them;
- batch size: half the decades between them, because gradient norms change with its square root where noise dominates;
- precision: `OTHER_PRECISION` if it differs;
- `UNKNOWN` for each of these that one side does not say.

The optimizer is no term: thresholds of one optimizer say nothing about another's, so they are never compared. The
weights and the bounds are a choice, made so that one bound holds for all of them; they are not fitted to data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tuner.evidence import Features

#: Added if the models differ, or are not known to be the same.
OTHER_MODEL = 0.25
#: Added if the precisions differ.
OTHER_PRECISION = 0.25
#: Added for each figure that one side does not say.
UNKNOWN = 0.25
#: Decades of batch size count half.
BATCH_WEIGHT = 0.5
#: Up to here an answer is ``close``, up to the second figure ``rough``; further ones are not carried over.
CLOSE, FARTHEST = 0.5, 1.5


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained and with what, as far as somebody says; None is not said.

    Attributes:
        optimizer: its class in lower case.
        num_parameters: trainable ones, >= 1.
        learning_rate: base rate, > 0.
        batch_size: examples of an optimizer step, >= 1.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        model_signature: of the model, as a study's features give it.
    """

    optimizer: str
    num_parameters: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    precision: str | None = None
    model_signature: str | None = None

    @classmethod
    def of(cls, features: Features) -> Subject:
        """What a probe saw.

        Args:
            features: of the probe.

        Returns:
            The subject.
        """
        return cls(**{name: getattr(features, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two trainings differ.

    Attributes:
        distance: see the module; 0 is the same thing.
        differences: one per term that is not 0, in words.
    """

    distance: float
    differences: tuple[str, ...]

    @property
    def quality(self) -> Literal["close", "rough"] | None:
        """What a threshold that is carried over this far is worth; None if it is not carried so far."""
        if self.distance > FARTHEST:
            return None
        return "close" if self.distance <= CLOSE else "rough"


def compare(asked: Subject, stored: Subject) -> Comparison:
    """Measure how far two trainings with one optimizer are apart; the distance is symmetric.

    Args:
        asked: the training that an answer is wanted for ("here").
        stored: the training that an answer is known of ("there").

    Returns:
        The distance and the differences.

    Example:
        >>> compare(
        ...     Subject(optimizer="sgd", num_parameters=1000, learning_rate=0.1, batch_size=32, precision="fp32"),
        ...     Subject(optimizer="sgd", num_parameters=1000, learning_rate=1.0, batch_size=32, precision="fp32"),
        ... )
        Comparison(distance=1.25, differences=('perhaps another model', 'learning rate 1 there, 0.1 here'))
    """
    terms = _size_terms(asked, stored)
    terms += _decades("learning rate", asked.learning_rate, stored.learning_rate)
    terms += _decades("batch size", asked.batch_size, stored.batch_size, weight=BATCH_WEIGHT)
    terms += _precision_terms(asked, stored)
    return Comparison(
        distance=round(sum(term for term, _ in terms), 6), differences=tuple(text for _, text in terms)
    )


def _size_terms(asked: Subject, stored: Subject) -> list[tuple[float, str]]:
    if asked.model_signature is not None and asked.model_signature == stored.model_signature:
        return []
    known = asked.model_signature is not None and stored.model_signature is not None
    other = (
        "another model" if known or asked.num_parameters != stored.num_parameters else "perhaps another model"
    )
    return [
        (OTHER_MODEL, other),
        *_decades("number of parameters", asked.num_parameters, stored.num_parameters),
    ]


def _precision_terms(asked: Subject, stored: Subject) -> list[tuple[float, str]]:
    if asked.precision is None or stored.precision is None:
        return [_unknown("precision", asked.precision is None)]
    if asked.precision == stored.precision:
        return []
    return [(OTHER_PRECISION, f"precision {stored.precision} there, {asked.precision} here")]


def _decades(
    name: str, asked: float | None, stored: float | None, *, weight: float = 1.0
) -> list[tuple[float, str]]:
    # A rate of 0 has no logarithm: nothing can be said of how far it is.
    if not asked or not stored:
        return [_unknown(name, not asked)]
    decades = abs(math.log10(asked) - math.log10(stored))
    return [(weight * decades, f"{name} {stored:.6g} there, {asked:.6g} here")] if decades else []


def _unknown(name: str, is_ours: bool) -> tuple[float, str]:
    return UNKNOWN, f"{name} not given" if is_ours else f"{name} not recorded there"
