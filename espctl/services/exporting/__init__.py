"""A synthetic set for other programs: its numbers, its pictures, and a card about it."""
