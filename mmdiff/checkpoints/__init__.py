"""Published checkpoints: one file per family, each a `Family` in the same shape."""
