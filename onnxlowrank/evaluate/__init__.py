"""How far the outputs of two networks differ: in come two models and inputs, out goes an agreement.

Errors of every output, and for class scores divergence, agreement and accuracy. It may know sessions and inputs,
nothing of layers.
"""
