"""The sampler study: solvers compared at equal calls on targets whose law is known."""
