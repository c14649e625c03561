"""One recipe a stage: its network, its data and its loss."""
