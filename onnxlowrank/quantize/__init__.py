"""Static int8: a float32 network and sample inputs become a network of QuantizeLinear and DequantizeLinear pairs.

Ranges of activations are observed in one pass over the inputs, chains are equalised so that one range fits all their
inner maps, onnxruntime's quantizer writes the pairs, and biases take back what rounding moves the responses by.
"""
