"""``flashbulb make``: the whole path, resumable stage by stage."""
