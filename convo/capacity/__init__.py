"""What one process can do, worked out from what it has done: behind ``convo capacity`` and the load ratio."""
