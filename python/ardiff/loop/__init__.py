"""The sampling loop: it executes any table on any model.

`run` is the loop, `state` what it carries from row to row, `model_calls` and `checks` how it calls
a model and what it refuses, `ladder` step sizes that adapt, `cuda_graphs` and `capture` the whole
loop as one CUDA graph.
"""
