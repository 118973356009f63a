"""The roads to and from RabbitMQ: events go out, conversations come in."""
