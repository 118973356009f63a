"""Sends what is recorded of requests and jobs to a collector of OpenTelemetry (OTLP over HTTP)."""
