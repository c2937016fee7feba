"""``python -m onnxlowrank``."""

from onnxlowrank.cli import main

if __name__ == "__main__":
    main()
