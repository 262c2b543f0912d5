"""Reports: tables, figures and pages of one run, of many runs, or of one routed image.

Imports `metrics`, `benchmarks` and `runs`, and no model.
"""
