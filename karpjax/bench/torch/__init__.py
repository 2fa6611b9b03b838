"""The benchmark's models in PyTorch, from the same papers; nothing here imports JAX."""
