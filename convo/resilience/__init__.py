"""How calls to a dependency are retried, limited and stopped while it is down: retry, budget, breaker, bulkhead."""
