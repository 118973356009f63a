"""What every other part runs on: named deadlines, the crossing into asyncio, threads, signals, the loop watch."""
