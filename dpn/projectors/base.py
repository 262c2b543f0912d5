"""Base class of projectors."""

from typing import ClassVar, TypedDict

from torch import Tensor, nn

from dpn.cost import MeetsKeep, check_share
from dpn.tokens import Grid
from dpn.vision import Needs, VisualFeatures
from dpn.vision.base import VisionTower

#: Largest distance of a share of tokens from the requested one: grids are coarse.
NEAR = 0.1


class ProjectorSizes(TypedDict):
    """Arguments that the model passes to every projector's constructor.

    Attributes:
        input_size: C, width of the vision tower's tokens.
        output_size: D, width of the decoder.
        grid: Grid of the vision tower's tokens for an image of native size.
    """

    input_size: int
    output_size: int
    grid: Grid


class Projector(nn.Module):
    """Base class of projectors, which turn visual features into tokens of the decoder's width.

    A projector determines how many tokens enter the decoder. The annotated arguments of a
    subclass's constructor are the keys of its YAML file. Its last parameter is `**sizes:
    Unpack[ProjectorSizes]`, which the model passes in and which the constructor passes on to this
    class.

    Args:
        input_size: C, width of the vision tower's tokens.
        output_size: D, width of the decoder.
        grid: Grid of the vision tower's tokens for an image of native size.

    Attributes:
        acts: Where it acts, for tables.
        meets_keep: How well `keep` is met: `exactly`, to one token; `roughly`, after calibration or
            by the nearest of a few grids; `never`, if it is ignored.
        trainable: Whether models are trained with it; False for training-free methods.
        own_weights: Whether it has other weights than LLaVA's MLP, so that a model that was trained
            with `projector=mlp` needs more training.
        needs: Additional features that it needs from the tower.
        reads_question: Whether it needs `ImageContext.questions`, for which the decoder reads the
            text of every instruction once more.
        adaptive: Whether the number of tokens depends on the content of an image.
        per_image: Whether the tokens of an image's tiles or frames compete with each other; if not,
            each grid is reduced by itself. For models whose images have several grids.
        calibrated: Whether `keep` is met by a price that is found on training data, see
            `dpn.training.calibration`.
        ignores: Arguments that are accepted, so that sweeps can include the method, and never read.
    """

    acts: ClassVar[str] = "before the decoder"
    meets_keep: ClassVar[MeetsKeep] = "exactly"
    trainable: ClassVar[bool] = True
    own_weights: ClassVar[bool] = False
    keep: float | None = None
    needs: Needs = Needs()
    reads_question: bool = False
    adaptive: bool = False
    per_image: ClassVar[bool] = False
    calibrated: ClassVar[bool] = False
    ignores: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, input_size: int, output_size: int, grid: Grid):
        super().__init__()
        self.input_size, self.output_size, self.grid = input_size, output_size, grid

    def grid_after(self, grid: Grid) -> Grid:
        """Return the grid of the tokens that are left of a tower's grid; 1 x n if they form none.

        If it depends on the image, this is the largest possible grid; if training draws it, this is
        the grid in evaluation.
        """
        return grid

    def attach(self, tower: VisionTower) -> None:
        """Request the additional features that are needed from the tower.

        Raises:
            ValueError: If the tower cannot provide them.
        """
        tower.request(self.needs)

    def tower_grid(self, grid: Grid) -> Grid:
        """Return the grid that the tower computes for an image whose full size has `grid`."""
        return grid

    def resize_images(
        self, pixel_values: Tensor, sizes: list[tuple[int, int]], grids: tuple[Grid, ...]
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Resize images for the tower; by default they are unchanged.

        Args:
            pixel_values: Pixels `[I, 3, Hmax, Wmax]`, with each image in the upper left corner.
            sizes: (height, width) of each image in pixels.
            grids: Grid of each image at this size.

        Returns:
            Pixels and sizes of the resized images.
        """
        return pixel_values, sizes

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        """Turn tokens of width C into tokens of width D."""
        raise TypeError(f"{type(self).__name__} does not implement forward")

    def flops(self, grid: Grid, after: Grid) -> int:
        """Return the FLOPs (FMA = 2) of one image.

        Args:
            grid: Grid of the image at its full size.
            after: Grid of the tokens that are left.
        """
        raise TypeError(f"{type(self).__name__} does not implement flops")

    def check(self) -> list[str]:
        """Return an error sentence for each problem of the arguments; empty if there is none."""
        way_out = "change the projector's other settings"
        return check_share("projector.keep", self.keep, self.reach, NEAR, way_out)

    def reach(self) -> tuple[float, float]:
        """Return the lowest and highest `keep` that is possible at the native grid.

        Both are the share that is left now, unless a subclass knows its range.
        """
        (height, width), after = self.grid, self.grid_after(self.grid)
        share = after[0] * after[1] / (height * width)
        return share, share
