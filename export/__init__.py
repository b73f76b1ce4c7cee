"""Turn a checkpoint into artifacts for phones, and artifacts into a bundle that proves itself."""
