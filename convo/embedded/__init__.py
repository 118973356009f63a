"""The embedded PostgreSQL of a machine that has none: its programs, its data folder, its start and its stop."""
