"""Recipe and trainer of the embedded teacher."""
