"""The detector: one portable file, and what it takes to make, check and ask it."""
