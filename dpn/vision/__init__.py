"""Pixels to visual features: one tower, one file."""

from dpn.parts import Family
from dpn.vision._features import ImageContext, Needs, VisualFeatures
from dpn.vision.base import VisionTower

_family = Family("dpn.vision", VisionTower)
names, resolve, build = _family.names, _family.resolve, _family.build

__all__ = ["ImageContext", "Needs", "VisionTower", "VisualFeatures", "build", "names", "resolve"]
