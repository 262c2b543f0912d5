"""Pixels to visual features: one tower, one file."""

from dpn.parts import Family
from dpn.vision.base import VisionTower, VisualFeatures

_family = Family("dpn.vision", VisionTower)
names, resolve, build = _family.names, _family.resolve, _family.build

__all__ = ["VisionTower", "VisualFeatures", "build", "names", "resolve"]
