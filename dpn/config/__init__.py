"""YAML to objects: composing configs, checking them before anything is built, and building.

Imports everything below, since it checks and builds every part.
"""
