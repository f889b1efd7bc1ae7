"""Fuzzing of every parser with atheris: `make fuzz`."""
