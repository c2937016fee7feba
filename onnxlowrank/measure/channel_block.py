"""The provider's channel block: ranks between two multiples of it cost as much as the higher one."""

from __future__ import annotations

import numpy as np


def channel_block(provider: str) -> int:
    """Return the block ranks are aligned to: the vector width of onnxruntime's NCHWc convolutions, in floats.

    16 on CPUs with AVX-512, 8 on others and on CUDA.
    """
    if provider != "cpu":
        return 8
    build = np.show_config(mode="dicts")
    found = build["SIMD Extensions"]["found"] if isinstance(build, dict) else ()
    return 16 if any(name.startswith(("AVX512", "X86_V4")) for name in found) else 8
