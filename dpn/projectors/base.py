"""What every projector is."""

from torch import nn

from dpn.tokens import Grid
from dpn.vision.base import VisualFeatures


class Projector(nn.Module):
    """Visual features to visual tokens of the decoder's width; decides how many of them enter it.

    A constructor's annotated arguments are the keys of the method's YAML; the keyword-only ones are
    given by the model.

    Args:
        input_size: C, width of the vision tower's tokens.
        output_size: D, width of the decoder.
        grid: of the vision tower's tokens for an image of its native size.
    """

    keep: float | None = None

    def __init__(self, *, input_size: int, output_size: int, grid: Grid):
        super().__init__()
        self.input_size, self.output_size, self.grid = input_size, output_size, grid

    def grid_after(self, grid: Grid) -> Grid:
        """The grid that is left of a tower's grid."""
        return grid

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        """Tokens of width C to tokens of width D."""
        raise TypeError(f"{type(self).__name__} does not project")

    def flops(self, grid: Grid) -> int:
        """FLOPs (FMA = 2) of one image whose tower tokens form `grid`."""
        raise TypeError(f"{type(self).__name__} does not count its FLOPs")

    def check(self) -> list[str]:
        """Everything that is wrong with the arguments, one sentence each; empty if all is well."""
        return []
