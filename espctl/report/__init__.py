"""The paper's tables and figures, and the numbers that were published."""
