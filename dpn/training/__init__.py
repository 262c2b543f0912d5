"""Training: the LightningModule, optimizers, strategies, callbacks, loggers and calibration.

Imports everything that a model and its losses need, and `inference` for the answers it shows.
"""
