"""Commands and their run folders: the request, the folder's name, lock and status, sweeps.

Imports `common` and `cost`.
"""
