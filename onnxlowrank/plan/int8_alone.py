"""What int8 alone gives, with every layer kept: an int8 plan has to be better than that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxlowrank.evaluate.agreement import Agreement


@dataclass(frozen=True, eq=False)
class Int8Alone:
    """The network that is int8 and nothing else.

    Attributes:
        latency_speedup: Time of the original / its time.
        file_bytes: Size of its file.
        agreement: How far its outputs differ, on the inputs that the network is compared on.
    """

    latency_speedup: float
    file_bytes: int
    agreement: Agreement

    def to_dict(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            "latency_speedup": self.latency_speedup,
            "file_bytes": self.file_bytes,
            "relative_error": self.agreement.relative_error,
            "top1_agreement": self.agreement.top1_agreement,
            "accuracy": self.agreement.accuracy,
            "drop": self.agreement.drop,
        }
