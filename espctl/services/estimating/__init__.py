"""What a command would cost, from a few real steps of it."""
