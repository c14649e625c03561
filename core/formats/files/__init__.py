"""How bytes become named tensors: safetensors, torch's zip and pickle, TorchScript, shards, JSON."""
