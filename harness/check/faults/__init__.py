"""The faults, a file a phase: where each first shows."""
