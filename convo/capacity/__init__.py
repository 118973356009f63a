"""What one process can do, worked out from what it has done: the figures behind ``convo capacity`` and the load ratio."""
