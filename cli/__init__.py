"""The command line `unclip`."""
