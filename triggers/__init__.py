"""What watches: each module is one trigger kind that keeps the contract of `service/trigger.py`."""
