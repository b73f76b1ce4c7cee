"""``flashbulb vote``: a small page on this machine that asks people which of two pictures they prefer."""
