"""Measurements: the bench's load and cases, contenders, dry runs, memory footprint, profiles.

Imports `training` and everything below.
"""
