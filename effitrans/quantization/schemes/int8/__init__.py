"""Int8 weights and activations, and an integer product."""
