"""Looks at what there is, and writes nothing."""
