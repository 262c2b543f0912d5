"""The layer loop, the attention backends and the ragged cache: the only place that knows
transformers' layers.
"""
