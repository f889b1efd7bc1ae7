"""What each command does: settings and a request in, plain records out. Printing is left to `espctl.cli`."""
