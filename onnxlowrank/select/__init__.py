"""Which candidate for which layer, under a budget for the whole network."""
