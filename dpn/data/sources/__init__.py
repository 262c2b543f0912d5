"""Where training and validation data come from: one source, one file.

Imports the formats and settings of `dpn.data`, not what loads or batches samples.
"""
