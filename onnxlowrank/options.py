"""How networks are optimised, whatever the goal: the options of :func:`onnxlowrank.optimize`, described once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxlowrank.calibrate.kernel_metrics import METRICS
from onnxlowrank.errors import MissingInputsError, OptionError
from onnxlowrank.evaluate.figure_of_merit import FigureOfMerit, check_metric
from onnxlowrank.goal import FLOAT32, FP16, PRECISIONS, QUANTISED, WEIGHT_BITS
from onnxlowrank.inputs.preprocess import Preprocess
from onnxlowrank.inputs.sources import Source
from onnxlowrank.measure.hardware import adds_int8_exactly
from onnxlowrank.measure.sessions import Target
from onnxlowrank.plan.energy import select_by_energy, select_uniformly
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.manual_ranks import Ranks
from onnxlowrank.plan.selection import Select
from onnxlowrank.tune.options import TuneOptions

EXACT, ENERGY = "exact", "energy"
BLOCKS = "blocks"
SELECTIONS: Mapping[str, Select] = {EXACT: select_exactly, ENERGY: select_by_energy, "uniform": select_uniformly}


@dataclass(frozen=True)
class Options:
    """How networks are optimised.

    Attributes:
        dequantize: Whether the network may be a QDQ one, of which the float32 network is made first.
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
        precision: ``float32``, or ``int8`` for a network that is quantised (QDQ: uint8 activations, int8 weights) and
            planned as such; ranges are those of ``calibration``. ``mixed``: layers are int8 or float32, whichever is
            better for the goal, a speed-up, a latency or a drop. ``fp16``: half precision, for CUDA; nodes whose
            numbers are out of its range on ``calibration`` stay in float32.
        int8_weights: ``8bit``; or ``7bit`` for weights within +-64, with which the int8 network computes the same on
            processors without VNNI. None takes 8 where this one has it.
        passes: Names of the methods to choose from, or ``["all"]``; None means the usual ones, without
            those that are not ``by_default``.
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
        tune: ``blocks`` fits all layers again once all are there, kept ones among them, see
            :mod:`onnxlowrank.fit.sweeps`; None doesn't.
        seed: Of the sampled positions and the synthetic images.
        finetune: For how many minutes the network that was found is trained, end to end, on ``calibration`` (through
            the ``finetune`` extra); None trains nothing.
        cascade: Whether layers are approximated one after the other, and what is behind is trained before the next one
            is (Denton 2014), all of it within the minutes of ``finetune``.
    """

    dequantize: bool = False
    calibration: Source | None = None
    evaluate: Source | None = None
    preprocess: Preprocess | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    provider: str = "cpu"
    threads: int = 1
    precision: str = FLOAT32
    int8_weights: str | None = None
    passes: Sequence[str] | None = None
    only: Sequence[str] = ()
    exclude: Sequence[str] = ()
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    selection: str = EXACT
    metric: str | FigureOfMerit | None = None
    kernel_metric: str = "data"
    nonlinear: bool = True
    asymmetric: bool = True
    tune: str | None = None
    seed: int = 0
    finetune: float | None = None
    cascade: bool = False

    @property
    def target(self) -> Target:
        """Where latency is measured."""
        return Target(self.provider, self.threads)

    @property
    def weight_bits(self) -> int:
        """Bits of int8 weights."""
        chosen = self.int8_weights or ("8bit" if adds_int8_exactly() else "7bit")
        return WEIGHT_BITS[chosen]

    def check(self) -> None:
        """Check what can be checked without the network.

        Raises:
            OptionError: If an option makes no sense.
            MissingInputsError: If there are no inputs where the precision needs some.
            ProviderError: If this machine cannot run the provider.
        """
        if self.selection not in SELECTIONS:
            raise OptionError(f"--selection {self.selection} is unknown; choose from {', '.join(SELECTIONS)}")
        if self.kernel_metric not in METRICS:
            raise OptionError(f"--kernel-metric {self.kernel_metric} is unknown; choose from {', '.join(METRICS)}")
        if self.tune not in (None, BLOCKS):
            raise OptionError(f"--tune {self.tune} is unknown; {BLOCKS} is what there is")
        check_metric(self.metric)
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed} makes no sense; give 0 or more")
        if self.precision not in PRECISIONS:
            raise OptionError(f"--precision {self.precision} is unknown; choose from {', '.join(PRECISIONS)}")
        if self.int8_weights is not None and self.int8_weights not in WEIGHT_BITS:
            raise OptionError(f"--int8-weights {self.int8_weights} is unknown; choose from {', '.join(WEIGHT_BITS)}")
        if self.int8_weights is not None and self.precision not in QUANTISED:
            raise OptionError(
                f"--int8-weights {self.int8_weights} is for --precision int8 or mixed; give one of these too"
            )
        if self.precision in QUANTISED and self.target.kind != "cpu":
            raise OptionError(f"--precision {self.precision} is for --provider cpu, not for {self.provider}")
        if self.precision in QUANTISED and self.calibration is None:
            raise MissingInputsError(
                f"--precision {self.precision} takes the ranges of activations from sample inputs, and none are given; "
                "name some with --calibration"
            )
        self._check_finetune()
        self.target.check()

    def _check_finetune(self) -> None:
        if self.finetune is None:
            if self.cascade:
                raise OptionError("--cascade is a way to train: say how many minutes with --finetune")
            return
        TuneOptions(minutes=self.finetune, seed=self.seed).check("--finetune")
        if self.precision == FP16:
            raise OptionError("--finetune trains float32 and int8 networks; leave it out, or --precision fp16")
        if self.cascade and self.precision != FLOAT32:
            raise OptionError(f"--cascade is for float32 networks; leave it out, or --precision {self.precision}")
        if self.calibration is None:
            raise MissingInputsError(
                "--finetune learns from sample inputs, and none are given; name some with --calibration"
            )
