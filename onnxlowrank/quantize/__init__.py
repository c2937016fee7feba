"""Other precisions: a float32 network and sample inputs become an int8 network, or one of half precision.

Static int8 is written as QuantizeLinear and DequantizeLinear pairs. Ranges of activations are observed in one pass over
the inputs, chains are equalised so that one range fits all their inner maps, onnxruntime's quantizer writes the pairs,
weights are rounded anew and biases moved: they take back what rounding does to the responses.
"""
