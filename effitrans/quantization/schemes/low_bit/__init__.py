"""Weights of 2, 3, 4 or 8 bits, packed; floating-point activations."""
