"""Unstructured and N:M sparsity, stored compactly."""
