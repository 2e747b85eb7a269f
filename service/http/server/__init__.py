"""The HTTP/1.1 server: bounds, deadlines and framing of our own, below ASGI."""
