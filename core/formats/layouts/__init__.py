"""One file a public layout of checkpoints."""
