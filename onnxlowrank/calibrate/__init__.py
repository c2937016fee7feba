"""Sample inputs, and the statistics captured by running the network on them in onnxruntime."""
