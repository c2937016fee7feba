"""Makes trained ONNX networks faster in onnxruntime by low-rank decomposition of their layers, without training."""
