"""A table of the paper from nothing: what is missing, what it costs, carrying it out."""
