"""The layer loop, the attention backends and the ragged cache. No other folder depends on how
Hugging Face's decoder layers work inside.

Imports `common`, `tokens` and `routers`.
"""
