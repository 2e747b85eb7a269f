"""People are told when flows fail, are late or do not run: once, until they have recovered.

`watch` notices and decides, `expectations` judges what flows are expected to do, `outbox` sends.
"""
