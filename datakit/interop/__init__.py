"""Interop: what other programs made, or are asked to make, read as if datakit had made it."""
