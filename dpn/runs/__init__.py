"""Commands and their run folders: the request; name, lock and status of a folder; sweeps.

Imports `common`.
"""
