"""Teacher to student: the only stage that trains."""
