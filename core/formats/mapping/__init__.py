"""From the names of a checkpoint to those of a network, and to the network itself."""
