"""Ranges of values, as annotations of the parameters that take them.

    def resize(size: AtLeast1, keep: Share = 0.5): ...

Type checkers see the plain types. `dpn.common.schema` reads the ranges, so that configs and command
lines are checked against the signature of the function that they are passed to.
"""

import math
import re
import sys
from dataclasses import dataclass
from typing import Annotated, Any

from dpn.common.method_files import Kind, method_names


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers.

    Attributes:
        low: Lower end.
        high: Upper end.
        above: Whether `low` itself is left out.
        below: Whether `high` itself is left out.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        """Whether a number is in the range; values of other types are not restricted."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        return low and high and abs(value) != math.inf

    def __str__(self) -> str:
        low = f"{'larger than' if self.above else 'at least'} {self.low:.15g}"
        high = f"{'less than' if self.below else 'at most'} {self.high:.15g}"
        ends = [low] * (self.low > -math.inf) + [high] * (self.high < math.inf)
        return " and ".join(ends) or "finite"


@dataclass(frozen=True)
class Form:
    """Values of a certain form.

    Attributes:
        pattern: Regular expression that the whole value, written as text, matches.
        words: The form in words, after "must be".
    """

    pattern: str
    words: str

    def __contains__(self, value: Any) -> bool:
        return re.fullmatch(self.pattern, str(value)) is not None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Choice:
    """Names of methods.

    Attributes:
        kind: Kind of method.
    """

    kind: Kind

    @property
    def names(self) -> list[str]:
        """All names."""
        return method_names(self.kind)

    def __contains__(self, value: Any) -> bool:
        return value is None or value in self.names

    def __str__(self) -> str:
        return f"a {self.kind}"


FINITE = Range()


def is_number(value: Any, limit: Range = FINITE) -> bool:
    """Whether a value is a number in a range that a float can hold; a bool is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max and value in limit


AtLeast0 = Annotated[int, Range(0)]
AtLeast1 = Annotated[int, Range(1)]
#: E.g. a weight, a penalty or a learning rate.
NonNegative = Annotated[float, Range(0)]
#: E.g. a divisor.
Positive = Annotated[float, Range(0, above=True)]
#: A share that is larger than 0, e.g. a target share of visual MACs.
Keep = Annotated[float, Range(0, 1, above=True)]
#: A share of a whole.
Share = Annotated[float, Range(0, 1)]
#: A share that cannot be the whole, e.g. a dropout probability or a momentum.
BelowOne = Annotated[float, Range(0, 1, below=True)]
CountOrAll = Annotated[int, Form(r"-1|[1-9]\d*", "at least 1, or -1 for no limit")]
#: Height and width of an image or a patch.
Pixels = Annotated[int, Range(1, 2**16)]
#: A number of layers. They are built for the checks of a config, so it has an upper end.
Layers = Annotated[int, Range(1, 2048)]
RouterName = Annotated[str, Choice("router")]
ProjectorName = Annotated[str, Choice("projector")]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Device = Annotated[str, Form(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:NUMBER")]
