"""A plan becomes fitted chains: first drafts from weights and statistics, then regressions on true responses.

In come the calibrated network and one candidate a layer, out go chains (:mod:`onnxlowrank.graph.chain`). It may know
the passes and what calibration captured, not how a plan was made.
"""
