"""Decompositions and their solvers: arrays in, factors out.

NumPy and SciPy only; nothing here has heard of ONNX. Each file names the paper and the equations it solves.
"""
