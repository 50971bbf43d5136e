"""How numbers are read and spelled in configs.

PyYAML (YAML 1.1) takes ``1e-3`` and ``1e-05`` for texts: a number needs a point in its mantissa and a sign in its
exponent. The spelling here is a number to every reader of YAML, JSON, TOML, Python and argparse alike.
"""

from __future__ import annotations

import math
import re

#: Digits of a threshold: finer differences are below the noise of any training.
DIGITS = 3
#: Within these, numbers are written without an exponent.
_FIXED_LOW, _FIXED_HIGH = 1e-4, 1e6

_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?")
#: Octal to some readers, decimal to others.
_LEADING_ZERO = re.compile(r"[+-]?0\d+")
_INFINITY = re.compile(
    r"""[+-]?(?:\.?inf(?:inity)?|float\(["']inf["']\)|(?:math|np|torch)\.inf)""", re.IGNORECASE
)
#: What YAML 1.1 takes for a number: a point, and a signed exponent.
_YAML_1_1 = re.compile(
    r"[+-]?\d[\d_]*(?:\.[\d_]*(?:[eE][+-]\d+)?)?|\.\d[\d_]*(?:[eE][+-]\d+)?|[+-]?\.(?:inf|Inf|INF)"
)


def parse_number(text: str) -> float | None:
    """The number that a token is meant to be, in any format's spelling.

    Args:
        text: without quotes.

    Returns:
        The number, which may be infinite; None if it is none.

    Example:
        >>> parse_number("1e-3"), parse_number(".inf"), parse_number("010"), parse_number("auto")
        (0.001, inf, None, None)
    """
    if _NUMBER.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
        return float(text.replace("_", ""))
    if _INFINITY.fullmatch(text):
        return -math.inf if text.startswith("-") else math.inf
    return None


def rounded(value: float) -> float:
    """A threshold as it is written.

    Args:
        value: any.

    Returns:
        The number with three significant digits.

    Example:
        >>> rounded(0.42371)
        0.424
    """
    return float(f"{value:.{DIGITS}g}")


def spell_number(value: float) -> str:
    """Spell a threshold so that every reader takes it for a floating-point number.

    Args:
        value: finite.

    Returns:
        Three significant digits, always with a point.

    Example:
        >>> [spell_number(each) for each in (0.42371, 1, 1e-3, 1e-5, 12_345_678)]
        ['0.424', '1.0', '0.001', '1.0e-05', '1.23e+07']
    """
    short = rounded(value)
    if short == 0 or _FIXED_LOW <= abs(short) < _FIXED_HIGH:
        text = f"{short:.10f}".rstrip("0")
        return text + "0" if text.endswith(".") else text
    mantissa, _, exponent = f"{short:.{DIGITS - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0")
    return f"{mantissa}0e{exponent}" if mantissa.endswith(".") else f"{mantissa}e{exponent}"


def is_yaml_number(text: str) -> bool:
    """Whether a YAML 1.1 reader takes a bare token for a number.

    Args:
        text: the token.

    Returns:
        False for ``1e-3``, which PyYAML reads as a text.
    """
    return bool(_YAML_1_1.fullmatch(text))
