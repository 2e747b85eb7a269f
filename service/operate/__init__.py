"""What operators may do and see, whichever way they ask."""
