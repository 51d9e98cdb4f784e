"""datakit turns public vision-language data into training batches."""

__version__ = "0.1.0"
