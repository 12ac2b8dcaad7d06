"""The actor-critic: from observations to action distributions and values."""
