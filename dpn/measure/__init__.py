"""Measurements: speed of contenders, dry runs on fake tensors, memory footprints, profiles.

Imports `training` and everything below.
"""
