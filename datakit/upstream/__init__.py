"""Upstream's rows and pictures as they stand in its files, before stages make records of them."""
