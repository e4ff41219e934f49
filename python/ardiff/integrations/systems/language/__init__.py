"""Language models of transformers: decoder layers at few rows, their cache, streams in one pass."""
