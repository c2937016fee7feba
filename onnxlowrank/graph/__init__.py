"""Loads, normalises, reads, rewrites and saves models: the only code that edits a graph.

No function here changes a model it is given; each returns a new one.
"""
