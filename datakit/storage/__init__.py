"""The root: files that appear whole or not at all, the ledger of what is done, and locks."""
