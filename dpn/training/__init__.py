"""The training loop: LightningModule, optimizers, strategies, callbacks, loggers, calibration.

Imports everything that a model and its losses need, and `inference` for the answers it shows.
"""
