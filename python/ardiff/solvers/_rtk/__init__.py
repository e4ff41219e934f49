"""Reverse transition kernels (RTK): stages of a few rows that sample p(x_b | x_a) for big steps."""
