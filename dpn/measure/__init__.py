"""Measurements: speed of contenders, dry runs on fake tensors, memory footprints, profiles.

May import every folder below it.
"""
