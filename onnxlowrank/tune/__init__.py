"""Training by gradients, in PyTorch, of weights of a network that was optimised: the one room that knows PyTorch.

In come the original network, the optimised one and sample inputs, out goes the same optimised network with other values
in some of its weights. PyTorch is loaded when work begins, through :mod:`.libraries`, and nowhere else.
"""
