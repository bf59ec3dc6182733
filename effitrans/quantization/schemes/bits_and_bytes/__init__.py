"""The number formats of bitsandbytes."""
