"""Accuracy against measured speed-up: one network optimised to several speed-ups, resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib

from onnxlowrank.destinations import check_destinations
from onnxlowrank.errors import OptionError
from onnxlowrank.goal import FLOAT32, SPEEDUP, Goal, goal_of
from onnxlowrank.graph.load import load, save, write_atomically
from onnxlowrank.graph.outside import digest as model_digest
from onnxlowrank.inputs.preprocess import Preprocess
from onnxlowrank.options import Options
from onnxlowrank.pipeline import optimize_each
from onnxlowrank.progress import Progress, Silent

SCHEMA = 3
_ABOUT = "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """Networks of several speed-ups.

    Attributes:
        model: What was optimised.
        points: The reports of :func:`onnxlowrank.optimize`, by rising speed-up asked for, with the file of the network
            as ``file``.
        computed: How many of them were computed now; the others were there.
    """

    model: str
    points: tuple[dict[str, Any], ...]
    computed: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``onnxlowrank schema sweep`` describes them."""
        return {"schema": SCHEMA, "kind": "sweep", "model": self.model, "points": list(self.points)}


def sweep(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    speedups: Sequence[float] = (1.5, 2.0, 3.0, 4.0, 5.0),
    calibration: str | os.PathLike[str] | None = None,
    evaluate: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    metric: str | None = None,
    outputs: Mapping[str, str] | None = None,
    provider: str = "cpu",
    threads: int = 1,
    precision: str = FLOAT32,
    int8_weights: str | None = None,
    passes: Sequence[str] | None = None,
    seed: int = 0,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Sweep:
    """Optimise a network to several speed-ups, and keep what is finished.

    Every finished point is a network and its report in ``folder``; the report is written last. A sweep that was
    interrupted, however hard, goes on where it stopped. Points share what does not depend on the speed-up:
    statistics, candidates, sensitivities, measured times.

    Args:
        model: ONNX file.
        folder: Where points are kept; made if it is not there.
        speedups: Each > 1.
        calibration: As for :func:`onnxlowrank.optimize`, likewise the options that follow.
        evaluate: Inputs, best with labels, on which all networks are compared with the original.
        preprocess: How images become inputs.
        shapes: Of synthetic inputs.
        metric: By name or as ``module:function``, as for :func:`onnxlowrank.optimize`.
        outputs: How outputs are measured, likewise.
        provider: Where latency is measured.
        threads: Number of threads latency is measured with.
        precision: ``float32``, ``int8`` or ``mixed``: of all points.
        int8_weights: ``7bit`` or ``8bit``.
        passes: Names of the methods to choose from, or ``["all"]``; None means the usual ones.
        seed: Of everything random.
        jobs: How many processes share the points, through joblib: inside ``joblib.parallel_config(backend="dask")``
            or another backend, on its workers, for which ``folder`` and the data must be in the same place. More than
            one disturb each other's stopwatch unless each has cores of its own.
        progress: Told how far the work is, where there is one job.

    Raises:
        OptionError: If ``folder`` holds the points of another sweep.
        OnnxLowRankError: If the model, the data or an option is unusable.
    """
    goals = {_name(value): goal_of(value, "latency", None, None, None, None) for value in sorted(set(speedups))}
    if not goals:
        raise OptionError("--speedup is empty: give one or more numbers above 1, e.g. 2,4")
    if jobs < 1:
        raise OptionError(f"--jobs {jobs} makes no sense; give 1 or more")
    options = Options(
        calibration=None if calibration is None else os.fspath(calibration),
        evaluate=None if evaluate is None else os.fspath(evaluate),
        preprocess=preprocess,
        shapes=shapes or {},
        metric=metric,
        outputs=outputs or {},
        provider=provider,
        threads=threads,
        precision=precision,
        int8_weights=int8_weights,
        passes=passes,
        seed=seed,
    )
    options.check()
    place = Path(folder)
    if place.is_dir():
        data = {"--calibration": calibration, "--evaluate": evaluate}
        check_destinations(files_of(place, speedups), [model], data)
    _claim(place, os.fspath(model), options)
    missing = [name for name in goals if finished(place, name) is None]
    parts = [missing[first::jobs] for first in range(min(jobs, len(missing)))]
    if jobs == 1:
        for part in parts:
            _compute(os.fspath(model), {name: goals[name] for name in part}, options, place, progress or Silent())
    elif parts:
        work = joblib.delayed(_compute)
        joblib.Parallel(n_jobs=jobs)(
            work(os.fspath(model), {name: goals[name] for name in part}, options, place, Silent()) for part in parts
        )
    points = tuple(point for name in goals if (point := finished(place, name)) is not None)
    return Sweep(os.fspath(model), points, len(missing))


def files_of(folder: Path, speedups: Sequence[float]) -> dict[str, Path]:
    """Return the files that a sweep keeps in its folder, by what messages call them."""
    names = [_ABOUT, *(f"{_name(value)}{suffix}" for value in speedups for suffix in (".onnx", ".json"))]
    return {f"{name} of --folder": folder / name for name in dict.fromkeys(names)}


def _name(speedup: float) -> str:
    return f"{speedup:g}x"


def finished(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the report of a point that is complete, or None."""
    try:
        report = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and (folder / f"{name}.onnx").is_file() else None


def _compute(model: str, goals: dict[str, Goal], options: Options, folder: Path, progress: Progress) -> None:
    """Compute points; each is complete once its report is there."""
    results = optimize_each(model, list(goals.values()), options, progress)
    for name, result in zip(goals, results, strict=True):
        path = folder / f"{name}.onnx"
        save(result.model, path)
        report = {**result.to_dict(), "file": path.name}
        write_atomically(folder / f"{name}.json", (json.dumps(report, indent=2) + "\n").encode())


def _claim(folder: Path, model: str, options: Options) -> None:
    """Make the folder that of this sweep, or check that it is."""
    digest = model_digest(load(model))
    mine = json.loads(json.dumps({"model": digest, "goal": SPEEDUP, **asdict(options)}))
    about = folder / _ABOUT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = json.loads(about.read_text(encoding="utf-8")) if about.exists() else None
    except (OSError, ValueError) as error:
        raise OptionError(f"--folder {folder} cannot be used ({error}); name another one") from error
    if known is None:
        write_atomically(about, (json.dumps(mine, indent=2) + "\n").encode())
    elif known != mine:
        other = ", ".join(key for key in mine if known.get(key) != mine[key])
        raise OptionError(f"--folder {folder} holds another sweep ({other} differ); name another folder or delete it")
