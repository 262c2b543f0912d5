"""Results to tables, figures and pages: of one run, of many runs, of one routed image.

Imports `metrics`, `benchmarks` and `runs`, and no model.
"""
