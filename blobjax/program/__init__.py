"""PROGRAM: what a config compiles to: state, optimizer, step, batches, and the Program that binds them to a mesh."""
