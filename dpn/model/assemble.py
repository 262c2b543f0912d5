"""Builds the parts of a model that its config chooses by name: vision tower, projector, router."""

import math
from typing import Any

from dpn import projectors, routers, vision
from dpn.cost import TextShape
from dpn.model.configuration import DPNConfig
from dpn.projectors import Projector
from dpn.routers import Router
from dpn.vision import VisionTower


def build_vision(config: DPNConfig) -> tuple[VisionTower, Projector]:
    """Build the vision tower and the projector, which is not attached to the tower yet.

    Raises:
        ValueError: If a name is unknown or its arguments are invalid.
    """
    text: Any = config.text_config
    tower = vision.build(**(config.vision_config or {}))
    projector: Projector = projectors.build(
        **(config.projector_config or {}),
        input_size=tower.output_size,
        output_size=text.hidden_size,
        grid=tower.grid,
    )
    return tower, projector


def build_router(config: DPNConfig, tower: VisionTower, projector: Projector) -> Router:
    """Build the router for the rows that the projector passes on; raises like `build_vision`."""
    return routers.build(
        **(config.router_config or {}),
        text=TextShape.from_config(config.text_config, base_rows=math.prod(tower.grid)),
        grid=projector.grid_after(tower.grid),
    )
