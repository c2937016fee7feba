"""Decompositions and their solvers: numbers in, numbers out; NumPy and SciPy only."""
