"""Training: the LightningModule, optimizers, strategies, callbacks, loggers and calibration.

May import every folder below it.
"""
