"""Upstream's rows and pictures as they are in its files, before stages make records of them."""
