"""Inputs become statistics: the network runs in onnxruntime, sampled inside the graph, and moments are accumulated.

In come a normalised model, its layers and sample inputs, out go each layer's moments, the metric under which errors of
its kernel are weighed, and rows of responses to fit on. It may know what passes ask for, sessions, and the graph.
"""
