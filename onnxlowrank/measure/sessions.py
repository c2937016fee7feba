"""The one place that opens onnxruntime sessions: providers, threads, spinning and log level are set here."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxlowrank.boundary import foreign
from onnxlowrank.errors import OptionError, ProviderError, RefusedModelError
from onnxlowrank.graph.custom_ops import register_custom_operators
from onnxlowrank.graph.outside import apart
from onnxlowrank.measure.refusal import failed_run, refused
from onnxlowrank.parallel import available_cores

ort.set_default_logger_severity(4)  # what is an error also raises one
ort.disable_telemetry_events()  # nothing reaches the network

_MOST_THREADS = 1024
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Target:
    """Where a network runs.

    Attributes:
        provider: ``cpu`` or ``cuda``; behind the latter onnxruntime's options of it, as
            ``cuda:prefer_nhwc=1:use_tf32=0``.
        threads: Number of threads.
        timed: Whether its time counts. Where it does not, and a network's weights are outside of it, onnxruntime makes
            no copies of these in a layout that it likes better.
    """

    provider: str = "cpu"
    threads: int = 1
    timed: bool = True

    @property
    def kind(self) -> str:
        """The provider without its options."""
        return self.provider.partition(":")[0]

    @property
    def options(self) -> dict[str, str]:
        """The provider's options."""
        _, *options = self.provider.split(":")
        return dict(option.partition("=")[::2] for option in options)

    def check(self) -> None:
        """Check that the target exists here.

        Raises:
            OptionError: If the provider's name, its options or the number of threads make no sense.
            ProviderError: If this onnxruntime, or this machine, cannot run the provider.
        """
        if self.kind not in PROVIDERS:
            raise OptionError(f"--provider {self.provider} is unknown; choose from {', '.join(PROVIDERS)}")
        if ":" in self.provider and (self.kind == "cpu" or not all(self.options.values())):
            raise OptionError(f"--provider {self.provider} is not understood; write cpu, cuda or e.g. cuda:use_tf32=0")
        if not 1 <= self.threads <= _MOST_THREADS:
            raise OptionError(f"--threads {self.threads} makes no sense; give 1 to {_MOST_THREADS}")
        if PROVIDERS[self.kind] not in ort.get_available_providers():
            raise ProviderError(
                f"--provider {self.provider}: this onnxruntime has no {PROVIDERS[self.kind]}; "
                "install onnxruntime-gpu or use --provider cpu"
            )
        if self.kind == "cpu":
            return
        try:
            open_session(_smallest_model(), self)
        except RefusedModelError as error:
            reason = str(error.__cause__).split("\n")[0]
            raise ProviderError(
                f"--provider {self.provider} does not start ({reason}); correct its options or use --provider cpu"
            ) from error


def all_threads() -> Target:
    """Return the CPU with as many threads as there are cores to use: for calibration, where only throughput counts."""
    return Target(threads=available_cores(), timed=False)


def open_session(model: onnx.ModelProto | str, target: Target, trace: Path | None = None) -> ort.InferenceSession:
    """Open a session.

    Its threads wait for work by spinning, as onnxruntime's do, but only while a run goes on: beyond that, those of
    one session would take the cores from another, timed in turns with it.

    Args:
        model: The network, or its file.
        target: Provider and threads.
        trace: How the file of onnxruntime's profile is to begin, which the session's ``end_profiling`` writes; None for
            no profile.

    Raises:
        RefusedModelError: If onnxruntime cannot load the network.
        ProviderError: If onnxruntime fell back from the provider to the CPU.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fsencode(trace)  # names of files are bytes, text where the locale allows
    wanted = PROVIDERS[target.kind]
    if target.kind != "cpu" and hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it doesn't find; the session then says so
            ort.preload_dlls()
    providers = [wanted] if target.kind == "cpu" else [(wanted, target.options), PROVIDERS["cpu"]]
    with foreign(refused):  # onnxruntime raises a dozen types, most of them derived from Exception alone
        register_custom_operators(options)
        source, given = (model, {}) if isinstance(model, str) else _parted(model)
        if given and not target.timed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if given:
            options.add_external_initializers(list(given), list(given.values()))
        session = ort.InferenceSession(source, options, providers=providers, enable_fallback=False)
        session.given = given  # they must live as long
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"--provider {target.provider}: {wanted} does not start on this machine "
            "(no GPU, or its CUDA or cuDNN libraries are missing); use --provider cpu"
        )
    return session


@contextlib.contextmanager
def running(feeds: Mapping[str, NDArray[np.generic]], synthetic: bool = False) -> Iterator[None]:
    """Explain what onnxruntime raises inside: by the time networks run they are known to load, so the inputs matter.

    Args:
        feeds: What the network is run on.
        synthetic: Whether that was made up.

    Raises:
        FailedRunError: In place of any other exception.
    """
    with foreign(lambda error: failed_run(error, feeds, synthetic)):
        yield


def _smallest_model() -> onnx.ModelProto:
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "smallest", value[:1], value[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)


def _parted(model: onnx.ModelProto) -> tuple[bytes, dict[str, ort.OrtValue]]:
    """Return a model as bytes, and what of its weights is not in these; their memory is used in place."""
    skeleton, weights = apart(model)
    given = {name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in weights.items()}
    return skeleton.SerializeToString(), given
