"""Where training and validation data come from: one source, one file.

Imports the checks and row formats of `dpn.data`, and nothing that loads or batches samples.
"""
