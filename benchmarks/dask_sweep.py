"""A sweep on a local Dask cluster of two workers, through joblib's backend.

    python benchmarks/dask_sweep.py models/vgg_cifar10.onnx models/cifar10_calibration.npz points

Needs ``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import argparse

import joblib

import onnxlowrank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("folder")
    parser.add_argument("--speedups", default="2,3")
    parser.add_argument("--passes", default="channel,spatial")
    args = parser.parse_args()
    from distributed import Client, LocalCluster  # so that --help does without

    speedups = [float(part) for part in args.speedups.split(",")]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        print(f"workers: {len(client.scheduler_info()['workers'])}")
        passes = args.passes.split(",")
        found = onnxlowrank.sweep(
            args.model, args.folder, speedups=speedups, calibration=args.calibration, passes=passes, jobs=2
        )
    for point in found.points:
        error = point["agreement"]["relative_error"]
        print(f"{point['goal']['value']:g}x: {point['latency_speedup']:.2f}x, error {error:.4f}")


if __name__ == "__main__":
    main()
