"""Checks of emitted programs, and the faults that show that each check can fail."""
