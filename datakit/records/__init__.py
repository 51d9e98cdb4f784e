"""A sample in memory and in a table."""
