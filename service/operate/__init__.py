"""What operators may do and see, by command or over HTTP."""
