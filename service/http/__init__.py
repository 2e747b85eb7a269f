"""What the service answers over HTTP: ingest, health, metrics, and the operators' API."""
