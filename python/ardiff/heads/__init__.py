"""Diffusion heads: what depends on level and context only is hoisted out of the sampling loop.

One form of a head is one module (`mar`, `vibevoice`, `pocket`): a subclass of `base.Head`
that says which norm and which MLP its blocks have, how level and context are embedded, and by which
marks `loading` recognises its checkpoints. `hoisting` computes modulations before the loop,
`packing` holds weights as the kernels read them, `fused` is a head as the loop calls it and `token`
a whole solver run on one.
"""
