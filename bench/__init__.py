"""Our speed and memory against the straight alternatives, measured in one run on one machine: `python -m bench`."""
