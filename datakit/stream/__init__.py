"""What the trainer reads: mixes, the order of their samples, and the samples."""
