"""Training: data, loop, EMA and one recipe per stage."""
