"""What a probe measured, as lines of text: figures, a picture of the norms with the rules of thumb, a table. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

from tuner.evidence import NormSketch, Reference
from tuner.search.prior import START_RULE, Expectation, Prior, Rule, prior

_COLUMNS = 100
_EXPECTATIONS = {
    Expectation.HELPS: "CLIPPING SHOULD HELP",
    Expectation.MAY_HELP: "CLIPPING MAY HELP",
    Expectation.UNLIKELY: "CLIPPING SHOULD NOT MATTER",
}


def probe_lines(reference: Reference, found: Prior) -> list[str]:
    """The page under `cliptune probe`.

    Args:
        reference: what the probe measured.
        found: what rules of thumb make of it.

    Returns:
        Lines without colour, at most 120 columns; the label column is 11 wide.
    """
    rows = [
        ("norms", _norms(reference.norms)),
        ("spikes", _spikes(reference)),
        ("curvature", _curvature(reference)),
    ]
    features = reference.features
    if features is not None:
        rate = "" if features.learning_rate is None else f" at learning rate {features.learning_rate:g}"
        batch = "" if features.batch_size is None else f", batch of {features.batch_size}"
        model = f"{features.num_parameters} parameters in {features.num_tensors} tensors"
        rows.append(("model", f"{model}, {features.optimizer}{rate}{batch}, {features.precision}"))
    rows.append(("expect", f"{_EXPECTATIONS[found.expectation]}: {found.sentence}"))
    rows.append(("", "a prior from initial weights, no verdict: a study trains with and without clipping"))
    lines = [
        f" {label if number == 0 else '':<10} {part}"
        for label, text in rows
        for number, part in enumerate(textwrap.wrap(text, _COLUMNS))
    ]
    return [*lines, "", *draw_strip(reference.norms, found.rules), "", *_table(found.rules)]


def probe_summary(reference: Reference) -> str:
    """A probe in a line, for the progress of a study.

    Args:
        reference: what the probe measured, perhaps by an earlier version.

    Returns:
        Norms, spike ratio and tail index as far as they are known, a rule of thumb, and whether clipping should help.
    """
    if reference.l2_norm is None:
        return "no gradient norms were reported: the thresholds come from the range that was given"
    norms, found = reference.l2_norm, prior(reference)
    figures = [f"median norm {norms.median:.3g}", f"q90 {norms.q90:.3g}", f"max {norms.max:.3g}"]
    if reference.spike_ratio is not None:
        figures.append(f"spike ratio {reference.spike_ratio:.3g}")
    if reference.tail_index is not None:
        figures.append(f"tail index {reference.tail_index:.3g}")
    rule = found.rule(START_RULE)
    thumb = "" if rule is None else f"rule of thumb {rule.setting}, "
    return f"{'   '.join(figures)}   (before clipping)   {thumb}{_EXPECTATIONS[found.expectation].lower()}"


def draw_strip(norms: NormSketch, rules: Sequence[Rule], *, width: int = 76) -> list[str]:
    """Norms on one line, from the smallest to the largest, and below it where each rule's threshold lies among them.

    Args:
        norms: of the probe.
        rules: to mark with letters, in this order; those that would fall on one spot get a line each.
        width: columns of the picture, at least 20.

    Returns:
        Lines of ASCII: a line of norms, at least one of marks, and the axis with its ends.

    Example:
        >>> norms = NormSketch(min=0.1, q01=0.2, q10=0.5, median=1.0, q90=2.0, q99=5.0, max=10.0)
        >>> for line in draw_strip(norms, [], width=21):
        ...     print(line)
         . min to max   - 98 %   = 80 %   # median
         |...----===#===----...|
         +---------------------+
          0.1                10  norm (log)
    """
    thresholds = [rule.setting.threshold for rule in rules if rule.setting.threshold is not None]
    least = next(
        each for each in (norms.min, norms.q01, norms.q10, norms.median) if each is not None and each > 0
    )
    low, high = min([least, *thresholds]), max([norms.max, *thresholds])
    span = math.log(high / low) or 1.0

    def column(value: float) -> int:
        return round(math.log(max(value, low) / low) / span * (width - 1))

    strip = [" "] * width
    stretches = ((least, norms.max, "."), (norms.q01, norms.q99, "-"), (norms.q10, norms.q90, "="))
    for start, end, mark in (*stretches, (norms.median, norms.median, "#")):
        first, last = column(norms.median if start is None else start), column(end)
        strip[first : last + 1] = mark * (last - first + 1)
    lines = [" . min to max   - 98 %   = 80 %   # median", f" |{''.join(strip)}|"]
    lines += [f" |{row}|" for row in _marks([column(each) for each in thresholds], width)]
    left, right = f"{low:.3g}", f"{high:.3g}"
    return [*lines, f" +{'-' * width}+", f"  {left}{right:>{width - len(left)}}  norm (log)"]


def _marks(columns: Iterable[int], width: int) -> list[str]:
    """The letters a, b, ... at their columns, on as many lines as keep them apart."""
    rows: list[list[str]] = []
    for number, column in enumerate(columns):
        row = next((each for each in rows if each[column] == " "), None)
        if row is None:
            rows.append(row := [" "] * width)
        row[column] = _letter(number)
    return ["".join(row) for row in rows]


def _letter(number: int) -> str:
    return chr(ord("a") + number)


def _table(rules: Sequence[Rule]) -> list[str]:
    lines = [f"    {'rule of thumb':<17}{'setting':<22}{'kappa':>7}   among these norms"]
    for number, rule in enumerate(rules):
        lines.append(
            f" {_letter(number)}  {rule.name:<17}{rule.setting!s:<22}{rule.kappa:>7.3g}   {rule.sentence}"
        )
    return lines


def _norms(norms: NormSketch) -> str:
    named = [("q01", norms.q01), ("q10", norms.q10), ("median", norms.median), ("q90", norms.q90)]
    named += [("q99", norms.q99), ("max", norms.max)]
    figures = [f"{name} {value:.3g}" for name, value in named if value is not None]
    return f"{'   '.join(figures)}   (before clipping)"


def _spikes(reference: Reference) -> str:
    ratio, index = reference.spike_ratio, reference.tail_index
    tail = "tail index not measured" if index is None else f"tail index {index:.3g}"
    return f"{'spike ratio not measured' if ratio is None else f'spike ratio {ratio:.3g}'}   {tail}"


def _curvature(reference: Reference) -> str:
    found = reference.smoothness
    if found is None:
        return "not measured"
    fit = f"L0 {found.l0:.3g}   L1 {found.l1:.3g}"
    return f"{fit}   (L0 + L1 x norm, correlation {found.correlation:.2f} over {found.num_points} places)"
