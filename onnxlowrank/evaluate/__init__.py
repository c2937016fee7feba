"""How far the outputs of two networks differ: in come two models and inputs, out goes an agreement.

Each output has its measure (:mod:`.measures`); what they lose adds up to the number that plans are made by
(:mod:`.objective`), and what is reported has its interval (:mod:`.intervals`). It may know the graph, sessions and
inputs, nothing of layers.
"""
