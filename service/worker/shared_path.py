"""Which way the parts of a cohort train under ``lanes=auto``: the first that asks measures, the others take its word.

Batched and one lane at a time agree up to rounding only. Parts that measured each for themselves could differ where
both are about as fast, and then settings would be compared that were trained by different arithmetic. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tuner.training.cohort import EngineChosen, Path

#: How often a launch may ask: once for each checkpoint of the beginning that it can't read, and once more.
MOST_ASKED = 10


class SharedPath:
    """The path of one cohort.

    Args:
        known: what was measured for it before; None if nobody has measured yet.

    Attributes:
        known: the path, as soon as a part has told it.

    Example:
        >>> shared = SharedPath()
        >>> shared.want(0), shared.want(1), list(shared.answers())
        (None, None, [(0, None)])
        >>> shared.told(0, EngineChosen(path="solo", num_lanes=1, reason="one lane at a time is 2.0 times as fast"))
        >>> list(shared.answers())
        [(1, 'solo')]
    """

    def __init__(self, known: Path | None = None) -> None:
        self.known = known
        self._measuring: int | None = None
        self._waiting: list[int] = []
        self._num_asked: Counter[int] = Counter()

    def want(self, part: int) -> None:
        """A part asks, and waits.

        Args:
            part: its index.

        Raises:
            ValueError: if it asks again and again.
        """
        self._forget(part)
        self._num_asked[part] += 1
        if self._num_asked[part] > MOST_ASKED:
            raise ValueError(f"part {part} asked more than {MOST_ASKED} times how its lanes train")
        self._waiting.append(part)

    def told(self, part: int, choice: EngineChosen) -> None:
        """A part said how it trains; the first word counts, whether it was measured or read from a checkpoint.

        Args:
            part: its index.
            choice: that it told.
        """
        self._forget(part)
        if self.known is None and choice.path != "external":
            self.known = choice.path

    def lost(self, part: int) -> None:
        """A part's process is gone; if it was to measure, another will.

        Args:
            part: its index.
        """
        self._forget(part)
        del self._num_asked[part]

    def is_owing(self, part: int) -> bool:
        """Whether the others wait for a part's word.

        Args:
            part: its index.
        """
        return part == self._measuring

    def is_waiting(self, part: int) -> bool:
        """Whether a part waits for its answer.

        Args:
            part: its index.
        """
        return part in self._waiting

    def _forget(self, part: int) -> None:
        if part in self._waiting:
            self._waiting.remove(part)
        if part == self._measuring:
            self._measuring = None

    def answers(self) -> Iterator[tuple[int, Path | None]]:
        """What can be answered now.

        Yields:
            A part's index and its path; None tells it to measure.
        """
        while self._waiting and (self.known is not None or self._measuring is None):
            part = self._waiting.pop(0)
            if self.known is None:
                self._measuring = part
            yield part, self.known
