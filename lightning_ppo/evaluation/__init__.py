"""Play whole episodes: during training, of a checkpoint, before a camera."""
