"""What the paper does with embeddings and noise, measured: `unclip probe`."""
