"""What every projector is."""

from typing import ClassVar, TypedDict

from torch import Tensor, nn

from dpn.cost import MeetsKeep, check_share
from dpn.tokens import Grid
from dpn.vision import Needs, VisualFeatures
from dpn.vision.base import VisionTower

#: How near a share of tokens has to be to the one that is asked for: grids are coarse.
NEAR = 0.1


class ProjectorSizes(TypedDict):
    """What the model gives every projector's constructor.

    Attributes:
        input_size: C, width of the vision tower's tokens.
        output_size: D, width of the decoder.
        grid: grid of the vision tower's tokens for an image of native size.
    """

    input_size: int
    output_size: int
    grid: Grid


class Projector(nn.Module):
    """Visual features to visual tokens of the decoder's width; decides how many of them enter it.

    A constructor's annotated arguments are the keys of the method's YAML. It ends with `**sizes:
    Unpack[ProjectorSizes]`, which the model fills in and the constructor hands to this one.

    Args:
        input_size: C, width of the vision tower's tokens.
        output_size: D, width of the decoder.
        grid: grid of the vision tower's tokens for an image of native size.

    Attributes:
        acts: where it acts, for tables.
        meets_keep: how well `keep` is met: `exactly`, to one token; `roughly`, after calibration or
            by the nearest of a few grids; `never`, if it is ignored.
        trainable: whether models are trained with it; False for training-free methods.
        own_weights: whether it has other weights than LLaVA's MLP, so that a model that was trained
            with `projector=mlp` needs more training.
        needs: what it needs of the tower besides tokens.
        adaptive: whether the number of rows depends on what an image shows.
        calibrated: whether `keep` is met by choosing a price on training data, see
            `dpn.training.calibration`.
        ignores: arguments that it accepts, so that sweeps can include it, and never reads.
    """

    acts: ClassVar[str] = "before the decoder"
    meets_keep: ClassVar[MeetsKeep] = "exactly"
    trainable: ClassVar[bool] = True
    own_weights: ClassVar[bool] = False
    keep: float | None = None
    needs: Needs = Needs()
    adaptive: bool = False
    calibrated: ClassVar[bool] = False
    ignores: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, input_size: int, output_size: int, grid: Grid):
        super().__init__()
        self.input_size, self.output_size, self.grid = input_size, output_size, grid

    def grid_after(self, grid: Grid) -> Grid:
        """The grid that is left of a tower's grid, 1 x n if it is none; the largest one where it
        depends on the image, the one of evaluation where training draws it.
        """
        return grid

    def attach(self, tower: VisionTower) -> None:
        """Ask the tower for what is needed.

        Raises:
            ValueError: if it does not have it.
        """
        tower.request(self.needs)

    def tower_grid(self, grid: Grid) -> Grid:
        """The grid at which the tower sees an image whose full size has `grid`."""
        return grid

    def resize_images(
        self, pixel_values: Tensor, sizes: list[tuple[int, int]], grids: tuple[Grid, ...]
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """What the tower sees instead of images `[I, 3, Hmax, Wmax]`, each of a size in pixels and
        a grid.
        """
        return pixel_values, sizes

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        """Tokens of width C to tokens of width D."""
        raise TypeError(f"{type(self).__name__} does not project")

    def flops(self, grid: Grid, after: Grid) -> int:
        """FLOPs (FMA = 2) of one image.

        Args:
            grid: of its full size in the tower.
            after: of the tokens that were left.
        """
        raise TypeError(f"{type(self).__name__} does not count its FLOPs")

    def check(self) -> list[str]:
        """Everything that is wrong with the arguments, one sentence each; empty if all is well."""
        way_out = "change the projector's other settings"
        return check_share("projector.keep", self.keep, self.reach, NEAR, way_out)

    def reach(self) -> tuple[float, float]:
        """Lowest and highest share of the tower's tokens at the native grid that `keep` can ask
        for; both are what it leaves if there is nothing between.
        """
        (height, width), after = self.grid, self.grid_after(self.grid)
        share = after[0] * after[1] / (height * width)
        return share, share
