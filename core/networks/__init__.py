"""Neural networks: pure nn.Modules over tensors, each with a frozen dataclass config."""
