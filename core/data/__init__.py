"""What models are trained on: pictograms, captions, batches."""
