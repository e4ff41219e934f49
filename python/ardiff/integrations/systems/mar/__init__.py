"""MAR: its blocks, and its loop over sets of tokens."""
