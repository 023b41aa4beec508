"""Training: recipe -> model and processor -> batches -> loop -> checkpoints."""
