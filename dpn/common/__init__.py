"""Small tools that every other folder may use; imports nothing else of dpn."""
