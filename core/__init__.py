"""The tensor engine: equations in, tensors out. Knows no host."""
