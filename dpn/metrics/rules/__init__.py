"""Rules that score an answer against its reference, one file each; `data.metric` names one.

A third party adds a rule as an entry point of the group `dpn.metrics`.
"""
