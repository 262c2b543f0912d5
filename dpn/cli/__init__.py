"""Command lines of `python -m dpn.X`: run them, diagnose mistakes and print readable errors.

May import every folder below it.
"""
