"""Training, checkpoints and inference. The only room that imports Lightning."""
