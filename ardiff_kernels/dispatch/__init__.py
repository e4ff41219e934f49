"""From an op's name to the kernel that runs: schemas and fakes (`library`), the compiled libraries
(`load`), which backend serves which op on which device (`backends`), gradients (`autograd`), and
tensors `[B, ...]` as rows `[B, d]` (`flat`)."""
