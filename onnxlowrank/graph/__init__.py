"""A file becomes a model, its layers and chains, and these a file again: the only code that edits a graph.

Loading, normalising, finding layers, adding probes, rewriting layers by chains, verifying, saving. No function here
changes a model it is given; each returns a new one. It may know activations of :mod:`onnxlowrank.decompose`, and
errors.
"""
