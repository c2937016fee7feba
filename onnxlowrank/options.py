"""How networks are optimised, whatever the goal: the options of :func:`onnxlowrank.optimize`, described once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxlowrank.calibrate.kernel_metrics import METRICS
from onnxlowrank.errors import OptionError
from onnxlowrank.evaluate.figure_of_merit import FigureOfMerit, check_metric
from onnxlowrank.inputs.preprocess import Preprocess
from onnxlowrank.inputs.sources import Source
from onnxlowrank.measure.sessions import Target
from onnxlowrank.plan.energy import select_by_energy, select_uniformly
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.manual_ranks import Ranks
from onnxlowrank.plan.selection import Select

EXACT = "exact"
SELECTIONS: Mapping[str, Select] = {EXACT: select_exactly, "energy": select_by_energy, "uniform": select_uniformly}


@dataclass(frozen=True)
class Options:
    """How networks are optimised.

    Attributes:
        calibration: Sample inputs, see :func:`onnxlowrank.inputs.sources.open_inputs`; None uses synthetic images.
        evaluate: Inputs, best with labels, on which the networks are compared; None holds out a part of the
            calibration.
        preprocess: How images become inputs; None scales RGB to 0..1 and normalises with the ImageNet mean and
            deviation.
        shapes: Of synthetic inputs, for dimensions that the network leaves open.
        outputs: By the name of an output, how it is measured: ``classes``, ``values``, ``ignore``, or ``auto``; see
            :func:`onnxlowrank.evaluate.measures.measures_of`.
        provider: ``cpu`` or ``cuda``, perhaps with onnxruntime's options, as ``cuda:prefer_nhwc=1:use_tf32=0``: where
            latency is measured.
        threads: Number of threads latency is measured with.
        passes: Names of the methods to choose from; None means all.
        only: Patterns (``*`` and ``?``) of the layers to consider; empty means all.
        exclude: Patterns of layers to keep.
        ranks: By layer name, settings by hand, or :class:`onnxlowrank.plan.manual_ranks.ManualRank`.
        selection: ``exact`` minimises what the layers' errors do to the output, measured layer by layer, as a knapsack
            problem; ``energy`` is the greedy choice of Zhang 2015, Eq. 13-14; ``uniform`` cuts all layers alike.
        metric: A figure of merit, more is better: ``top1``, ``top5``, ``psnr``, ``iou``, ``boxes``, ``cosine`` or
            ``text``, see :mod:`onnxlowrank.evaluate.task_metrics`; a function of a network's outputs and the labels,
            see :data:`onnxlowrank.evaluate.figure_of_merit.FigureOfMerit`; or ``module:function`` naming one.
        kernel_metric: How the passes of Denton 2014 and Lebedev 2015 weigh errors of a kernel before its last factor is
            refitted to responses: ``data`` covariance, ``frobenius``, or ``mahalanobis`` (gradients of the network,
            through the ``finetune`` extra).
        nonlinear: Whether the fit takes activations into account (Eq. 5); otherwise it compares responses before them.
        asymmetric: Whether layers are fitted on what the rewritten prefix gives (Eq. 12).
        seed: Of the sampled positions and the synthetic images.
    """

    calibration: Source | None = None
    evaluate: Source | None = None
    preprocess: Preprocess | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    provider: str = "cpu"
    threads: int = 1
    passes: Sequence[str] | None = None
    only: Sequence[str] = ()
    exclude: Sequence[str] = ()
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    selection: str = EXACT
    metric: str | FigureOfMerit | None = None
    kernel_metric: str = "data"
    nonlinear: bool = True
    asymmetric: bool = True
    seed: int = 0

    @property
    def target(self) -> Target:
        """Where latency is measured."""
        return Target(self.provider, self.threads)

    def check(self) -> None:
        """Check what can be checked without the network.

        Raises:
            OptionError: If an option makes no sense.
            ProviderError: If this machine cannot run the provider.
        """
        if self.selection not in SELECTIONS:
            raise OptionError(f"--selection {self.selection} is unknown; choose from {', '.join(SELECTIONS)}")
        if self.kernel_metric not in METRICS:
            raise OptionError(f"--kernel-metric {self.kernel_metric} is unknown; choose from {', '.join(METRICS)}")
        check_metric(self.metric)
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed} makes no sense; give 0 or more")
        self.target.check()
