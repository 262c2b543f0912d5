"""No compression: every visual row goes through every layer."""

from dpn.cost import TextShape
from dpn.routers.base import Router
from dpn.tokens import Grid


class NoRouter(Router):
    """The same path as every other method, with no decisions; `keep` is accepted and ignored."""

    ignores = ("keep",)

    def __init__(self, keep: float | None = None, *, text: TextShape, grid: Grid):
        super().__init__(text=text, grid=grid)
