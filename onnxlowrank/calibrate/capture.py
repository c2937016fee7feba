"""Runs networks over sample inputs and takes from each a few positions of the tensors asked for.

The positions are chosen inside the graph (:mod:`onnxlowrank.graph.probe`), so only ``[samples, channels]`` leaves the
session, and one feed is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.errors import NotFiniteError, ScratchError
from onnxlowrank.graph.probe import Probe, add_probes
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.progress import Advance
from onnxlowrank.temporary import Scratch

Rows = NDArray[np.float32]


ROWS_PER_LAYER = 48_000


def positions_per_input(inputs: Inputs) -> int:
    """Return how many positions of each sample are taken for a layer to get about ``ROWS_PER_LAYER`` rows in all."""
    return math.ceil(ROWS_PER_LAYER / inputs.samples)


def fed_positions(inputs: Inputs, seed: int, index: int) -> Rows:
    """Return the random numbers that choose positions of one feed; see :mod:`onnxlowrank.graph.probe`."""
    return np.random.default_rng([seed, index]).random(positions_per_input(inputs), dtype=np.float32)


def sample(
    model: onnx.ModelProto, probes: Sequence[Probe], inputs: Inputs, seed: int, advance: Advance
) -> Iterator[dict[str, Rows]]:
    """Yield, for one feed after the other, the sampled rows ``[rows, channels]`` of every probe.

    Equal seeds sample equal positions of the same feed, whichever the network; the samples of a feed share theirs.
    Rows may hold what is not finite.
    """
    yield from _run(add_probes(model, probes), inputs, seed, advance)


def run_probes(
    probed: onnx.ModelProto, inputs: Inputs, seed: int, advance: Advance, others: Collection[str] = ()
) -> Iterator[dict[str, Rows]]:
    """Yield, for one feed after the other, the outputs of a network with probes; see :func:`sample`.

    The positions go to the one input that the feeds do not name. ``others`` are outputs that may be anything.

    Raises:
        NotFiniteError: If an output is not finite.
    """
    sampled = {value.name: value.doc_string or f"tensor '{value.name}'" for value in probed.graph.output}
    for index, rows in enumerate(_run(probed, inputs, seed, advance)):
        for name, values in rows.items():
            if name not in others and not np.isfinite(values).all():
                raise NotFiniteError(
                    f"{sampled[name]} of the network is not finite on input {index} of {inputs.description}; give "
                    "inputs of the range it was trained on"
                )
        yield rows


def _run(probed: onnx.ModelProto, inputs: Inputs, seed: int, advance: Advance) -> Iterator[dict[str, Rows]]:
    """Yield, for one feed after the other, the outputs of a network with probes."""
    session = open_session(probed, all_threads())
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    for index, feeds in enumerate(inputs):
        positions = fed_positions(inputs, seed, index)
        given = {name: value for name, value in feeds.items() if name in wanted}
        given |= dict.fromkeys(wanted - feeds.keys(), positions)
        with running(feeds):
            rows = dict(zip(names, session.run(names, given), strict=True))
        yield rows
        advance(1)


class RowStore:
    """Rows on disk, one file a name, appended to while streaming and read back one name at a time."""

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._channels: dict[str, int] = {}

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.remove()

    def append(self, name: str, rows: Rows) -> None:
        """Add rows ``[n, channels]`` to a name's file.

        Raises:
            ScratchError: If there is no room for them.
        """
        self._channels[name] = rows.shape[1]
        try:
            with self._file(name).open("ab") as file:
                rows.tofile(file)
        except OSError as error:
            raise ScratchError(
                f"the samples of layer {name} cannot be kept in the temporary folder {self._scratch.folder} "
                f"({error.strerror or error}): make room or set TMPDIR to a larger disk"
            ) from error

    def read(self, name: str) -> Rows:
        """Return all rows ``[n, channels]`` of a name, in the order they came."""
        return np.fromfile(self._file(name), np.float32).reshape(-1, self._channels[name])

    def _file(self, name: str) -> Path:
        names = list(self._channels)
        return self._scratch.folder / f"{names.index(name)}.f32"
