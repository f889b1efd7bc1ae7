"""Search for options of a method: studies, their trials, and who works on them."""
