"""How well the sum of prices predicts the time of a whole network: random plans, predicted and measured.

    python benchmarks/predictions.py models/vgg_cifar10.onnx models/cifar10_calibration.npz

Of every layer a random offer of those that no other beats. The prices are calibrated on one plan more, as they are by
the first outline of every search.
"""

from __future__ import annotations

import numpy as np
from common import arguments, prepare

from onnxlowrank.calibrate.capture import Spool
from onnxlowrank.measure.interleaved import measure_afresh
from onnxlowrank.measure.latency import ratio


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    errors = []
    with Spool() as spool:
        prepared = prepare(args, spool)
        network, prices = prepared.network(args.threads), prepared.prices(args.threads)
        for index in range(args.plans + 1):
            offers = prices.offers()
            plan = {layer: offered[rng.integers(len(offered))].candidate for layer, offered in offers.items()}
            prices.learn(plan)
            pair = [network.original, network.outline(plan)]
            measured = ratio(*measure_afresh(pair, network.feeds, network.target, seconds=3.0))
            predicted = prices.whole / prices.total(plan)
            if not index:
                prices.calibrate(plan, prices.whole / measured)
                print(f"calibrated: predicted {predicted:.3f}x, measured {measured:.3f}x", flush=True)
                continue
            errors.append(measured / predicted - 1)
            print(
                f"{index}: predicted {predicted:.3f}x, measured {measured:.3f}x, {100 * errors[-1]:+.1f} %", flush=True
            )
    sizes = np.abs(errors)
    print(f"{len(sizes)} plans: error {100 * np.median(sizes):.1f} % (median), {100 * np.max(sizes):.1f} % (largest)")


if __name__ == "__main__":
    main()
