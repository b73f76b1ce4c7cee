"""Run a bundle, compare it with PyTorch, time it, and show it."""
