"""CLIP embeddings and the spaces they live in."""
