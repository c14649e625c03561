"""The whole unCLIP system without ComfyUI: networks, diffusion, embeddings, formats, pipelines, training."""
