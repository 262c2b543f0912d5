"""Small tools that every other folder may use.

Imports nothing else of dpn.
"""
