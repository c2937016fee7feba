"""Models become milliseconds: sessions, interleaved timing, one-layer models, node times, and the cache of times.

All onnxruntime sessions but that which folds constants are opened by :mod:`.sessions`, which sets provider, threads,
spinning and log level. It may know the graph and what a network is fed, nothing of plans.
"""
