"""HTTP: the server, webhooks, health, metrics and the operators' API."""
