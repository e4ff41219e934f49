"""The commands of the command line, a module each; modules whose name begins with an underscore are
no commands.

A module's docstring begins with the command's help line. It has `add_arguments(parser)` and
`run(args) -> (results, exit status)`; results are what `--json` writes.
"""
