"""effitrans: make a Transformer smaller and faster, and prove it."""

__version__ = "0.1.0"
