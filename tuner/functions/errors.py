"""The one error of this package."""

from __future__ import annotations


class NotLaneFriendlyError(Exception):
    """A layer or function has no form that trains many lanes at once.

    Whoever trains falls back to one lane at a time and shows the sentence.

    Attributes:
        subject: the layer or function, in the user's spelling, for example ``nn.LSTM(proj_size=8)``.
        reason: why it cannot be trained in lanes, as a clause.
        remedy: what to write instead, as a clause.

    Example:
        >>> print(NotLaneFriendlyError("nn.Foo", "it counts rows", "use nn.Bar"))
        nn.Foo cannot be trained in lanes: it counts rows; use nn.Bar
    """

    def __init__(self, subject: str, reason: str, remedy: str) -> None:
        self.subject = subject
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{subject} cannot be trained in lanes: {reason}; {remedy}")
