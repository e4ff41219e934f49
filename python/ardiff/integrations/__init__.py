"""Inside other people's stacks: a module for each system, none imported by `import ardiff`."""
