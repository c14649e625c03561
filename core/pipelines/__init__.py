"""Whole stages: built networks and tensors in, tensors out."""
