"""The command as a process of its own, forked from one that has imported it: that saves each the second this takes.

All is as if ``python -m onnxlowrank`` had been started, but for what Python reads once and for all: variables whose
names begin with ``PYTHON`` and those of the locale are the server's; and whole networks are timed briefly. Tests of
these, of what is imported when, and those that change anything ahead of the command start an interpreter.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

_LONGEST_ORDER = 1 << 20
_EXPECTED = ("words", "cwd", "env")
_FILES = 4
"""Standard input, output and error, and where the exit status is told."""


def run_command(
    words: Sequence[str | bytes],
    cwd: Path,
    env: Mapping[str, str] = os.environ,
    text: bool = True,
    timeout: float = 300.0,
) -> subprocess.CompletedProcess:
    """Run the command with these words behind its name to its end, like ``subprocess.run``."""
    order = json.dumps(dict(zip(_EXPECTED, ([*map(os.fsdecode, words)], str(cwd), dict(env)), strict=True)))
    told, telling = socket.socketpair()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors, open(os.devnull, "rb") as nothing:
        files = [nothing.fileno(), out.fileno(), errors.fileno(), telling.fileno()]
        socket.send_fds(_server(), [order.encode()], files)
        telling.close()
        told.settimeout(timeout)
        code = int(told.recv(100))
        told.close()
        out.seek(0)
        errors.seek(0)
        streams = [out.read(), errors.read()]
    shown = [stream.decode().replace("\r\n", "\n") for stream in streams] if text else streams
    return subprocess.CompletedProcess([*words], code, *shown)


@functools.cache
def _server() -> socket.socket:
    """Start a server; it ends with this process, whose end of the socket then closes."""
    mine, its = socket.socketpair(type=socket.SOCK_SEQPACKET)
    given = [sys.executable, __file__, str(its.fileno())]
    nothing = subprocess.DEVNULL
    subprocess.Popen(given, pass_fds=[its.fileno()], stdin=nothing, stdout=nothing, stderr=nothing)
    its.close()
    return mine


def _orders(server: socket.socket) -> tuple[dict, list[int]]:
    """Return an order, and the files it comes with, in a process of its own for each; never in the server."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        order, files, *_ = socket.recv_fds(server, _LONGEST_ORDER, _FILES)
        if not order:
            sys.exit()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if not child:
                return json.loads(order), files
            _, status = os.waitpid(child, 0)
            os.write(files[-1], str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        for file in files:
            os.close(file)


def _obey(server: socket.socket) -> None:
    """Become the process that was ordered."""
    from stopwatch import time_briefly  # beside this file

    import onnxlowrank.cli

    time_briefly()
    order, files = _orders(server)
    server.close()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    for number in (signal.SIGINT, signal.SIGHUP):  # what runs in the background is told to ignore them
        signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler)
    os.chdir(order["cwd"])
    sys.path[0] = os.getcwd()  # as with python -m
    os.environ.clear()
    os.environ.update(order["env"])
    tempfile.tempdir = None
    sys.argv = ["onnxlowrank", *order["words"]]
    code = 0
    try:
        onnxlowrank.cli.main()
    except SystemExit as ending:
        code = ending.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # a thread that onnxruntime would wait for was not forked


if __name__ == "__main__":
    _obey(socket.socket(fileno=int(sys.argv[1])))
