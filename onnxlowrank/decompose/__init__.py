"""Decompositions and their solvers: arrays in, factors out.

NumPy and SciPy, and threads for the largest solver; nothing here has heard of ONNX. Each file names the paper and the
equations it solves.
"""
