"""Measures of quality: R-precision, background binding, distances between sets of pictures."""
