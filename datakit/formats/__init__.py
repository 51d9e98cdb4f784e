"""Files that are read by index or row: JSON, Parquet, zip, tar, WebDataset."""
