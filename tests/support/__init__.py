"""What tests share: where the checkout is, and below it the program, brokers and contracts."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
