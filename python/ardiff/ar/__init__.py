"""Autoregressive sampling: contexts from an encoder, patches from a solver.

`engine` runs requests that come and go, `sampler` draws whole images, `step` makes the next patches
of either. An `encoder` with a `kv_cache` turns the patches made so far into contexts;
`stock_context` takes a transformers model for it, `function_model` a user's own functions.
"""
