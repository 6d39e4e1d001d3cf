"""Data sets: bundled real ones, files of the user's, noise; and which rows make which batch."""
