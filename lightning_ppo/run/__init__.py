"""A training from its arguments to its summary: Trainer, run directory, callbacks, loggers."""
