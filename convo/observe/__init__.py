"""What the service tells about itself: events and figures; it decides nothing."""
