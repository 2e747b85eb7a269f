"""What watches: each module is one kind of trigger; see `service/domain/trigger.py`."""
