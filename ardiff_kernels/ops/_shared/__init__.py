"""What several ops use: argument checks, the noise address, rows of a table, pieces of kernels."""
