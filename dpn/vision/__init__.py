"""Pixels to visual features: one tower, one file."""

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
