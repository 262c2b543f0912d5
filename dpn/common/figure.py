"""Figures that are written completely or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpn.common.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def drawn_to(path: Path, size: tuple[float, float], dpi: int = 120) -> Iterator["Figure"]:
    """An empty matplotlib figure, written as a PNG when the block ends; `$` in its texts is a
    letter and not the start of a formula.

    Args:
        path: PNG to write.
        size: Width and height in inches.
        dpi: Pixels per inch.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot: no display, no global state
    with rc_context({"text.parse_math": False}):
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=dpi, format="png")
