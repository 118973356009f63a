"""When to try again, and when to leave a dependency alone; it knows no dependency by name."""
