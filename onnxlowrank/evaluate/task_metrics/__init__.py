"""Figures of merit by name, one file a task: what ``--metric`` knows by itself.

Each looks at the outputs of the original network first: which of them it reads, and how they are laid out. Where there
are no labels, the original's own answers stand for the truth. All but ``psnr``, which is in dB, are per cents.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxlowrank.evaluate.task_metrics.base import TaskMetric
from onnxlowrank.evaluate.task_metrics.boxes import boxes
from onnxlowrank.evaluate.task_metrics.classification import top1, top5
from onnxlowrank.evaluate.task_metrics.embeddings import cosine
from onnxlowrank.evaluate.task_metrics.images import psnr
from onnxlowrank.evaluate.task_metrics.masks import iou
from onnxlowrank.evaluate.task_metrics.text import text

BUILT_IN: Mapping[str, TaskMetric] = {one.__name__: one for one in (top1, top5, psnr, iou, boxes, cosine, text)}
UNITS = {name: "dB" if name == "psnr" else "%" for name in BUILT_IN}
COUNTED = ("top1", "top5")
"""Those that count samples: their intervals are exact, and a small drop takes many samples to be confirmed."""
