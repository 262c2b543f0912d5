"""Vision towers, which turn pixels into visual features; one file per tower.

Imports `common` and `tokens`.
"""

from dpn.common.registry import Registry
from dpn.vision._features import ImageContext, ImageGroup, Needs, VisualFeatures
from dpn.vision.base import VisionTower

_registry = Registry("dpn.vision", VisionTower)
names, resolve, build = _registry.names, _registry.resolve, _registry.build

__all__ = [
    "ImageContext",
    "ImageGroup",
    "Needs",
    "VisionTower",
    "VisualFeatures",
    "build",
    "names",
    "resolve",
]
