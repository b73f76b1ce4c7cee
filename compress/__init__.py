"""Compression: a checkpoint in, a smaller one out, with a plan that each backend lowers in its own way."""
