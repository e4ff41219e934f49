"""What a sampler will need before it runs: the theory's settings, a model's curvature, the step
sizes that follow, and the solver that measurements recommend."""
