"""A coverage-guided run over everything that reads files: only errors of our own may come out.

    pip install atheris && python tests/fuzz_loader.py FOLDER -max_total_time=1800

The first byte of an input says which kind of file the rest is; FOLDER collects inputs that reach new code. What is
raised beyond our errors ends the run and leaves the input in ``crash-*``.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["onnxlowrank", "numpy.lib", "onnx", "zipfile", "PIL", "ast", "tokenize"]):
    from helpers.damage import VALID, read

_NAMES = list(VALID)


def main() -> None:
    """Put the valid files into the folder and begin."""
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, (name, content) in enumerate(VALID.items()):
        (corpus / f"valid_{name}").write_bytes(bytes([number]) + content)
    with tempfile.TemporaryDirectory() as scratch:

        def one(data: bytes) -> None:
            if data:
                read(Path(scratch), _NAMES[data[0] % len(_NAMES)], data[1:])

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
