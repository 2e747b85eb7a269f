"""The runtime: events in, runs out, a journal between.

The lowest layer. It knows `Trigger` and `Flow` values, never Kafka or a folder.
"""
