"""Data sets and synthetic targets with exact scores."""
