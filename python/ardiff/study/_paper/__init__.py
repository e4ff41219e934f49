"""The reverse transition kernel papers' experiment, in parts: settings, score, samplers, metric."""
