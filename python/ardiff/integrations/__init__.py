"""The samplers inside other packages; each module imports its package when it is imported."""
