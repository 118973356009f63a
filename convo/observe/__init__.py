"""How convo reports on itself: log records, the log's lines, and metrics."""
