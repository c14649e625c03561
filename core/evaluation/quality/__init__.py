"""How good pictures are: R-precision, background binding, distances between sets of pictures."""
