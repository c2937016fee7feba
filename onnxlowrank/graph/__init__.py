"""Loads, normalises, reads, rewrites and saves models: the only code that edits a graph.

No function here changes a model it is given; each returns a new one.
"""

from onnxlowrank.graph.layers import find_layers
from onnxlowrank.graph.load import Source, check_destination, load, save
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.probe import POSITIONS, Probe, add_probes, expose
from onnxlowrank.graph.rewrite import rewrite

__all__ = [
    "POSITIONS",
    "Probe",
    "Source",
    "add_probes",
    "check_destination",
    "expose",
    "find_layers",
    "load",
    "normalise",
    "rewrite",
    "save",
]
