"""The update: the LightningModule, objectives, gradients, steps."""
