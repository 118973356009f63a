"""The parts of the embedded PostgreSQL; only store.embedded and store.backup know them."""
