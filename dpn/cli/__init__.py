"""Command lines of the doors: running them, readable errors, and the diagnosis of mistakes.

Imports `config` and everything below.
"""
