"""convo: takes in finished conversations, keeps them safe, and finds out what was said in them."""

__version__ = "0.1.0"
