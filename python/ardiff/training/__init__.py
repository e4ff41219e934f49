"""Training of the shipped autoregressive models."""
