"""Logs behind the receipts: moves them into object storage, reads them there, and erases them there."""
