"""What flows do outside: durable actions, each in the file of its name."""
