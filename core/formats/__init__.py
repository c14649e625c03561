"""Checkpoint files: what they are, how they are read and written. One file per layout."""
