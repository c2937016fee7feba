"""What the user has becomes what a network is fed: image folders, arrays, ONNX test data, readers, synthetic inputs.

In come a path, an object or nothing, and the model's input specifications, out goes a sequence of feeds that is
checked, preprocessed, and never whole in memory. It may know nothing but errors and temporary folders.
"""
