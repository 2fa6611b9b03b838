"""How fast a training step is, beside the same model in PyTorch."""
