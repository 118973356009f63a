"""One conversation in, what was found in it out; it knows nothing of jobs or of the database."""
