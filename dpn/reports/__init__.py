"""Reports: tables, figures and pages of one run, of many runs, or of one routed image.

Imports `common`, `metrics`, `data`, `benchmarks` and `runs`.
"""
