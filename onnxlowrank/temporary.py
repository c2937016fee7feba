"""Temporary folders: they go with the object that holds them, and what a killed process left goes with the next one.

Beside every folder ``onnxlowrank-xxxxxxxx`` lies a file of that name and ``.lock``, locked by the process that owns the
folder from before it is made until it is gone. The system lets go of the lock when the process ends, however it does,
so a folder whose lock can be had is nobody's. Nothing without such a file is ever touched.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO

from onnxlowrank.errors import ScratchError

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        """Lock an open file unless it is locked already, by whomever; return whether it was not."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


_PREFIX = "onnxlowrank-"
_SUFFIX = ".lock"
_LOCKS = re.compile(rf"\.?{_PREFIX}[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")
_ELSEWHERE_S = 86_400.0
"""How old is what another machine can be taken to have left: on some shared file systems its locks are not seen."""


class Scratch:
    """A temporary folder that is removed with the object, at the latest when Python exits.

    Before it is made, what killed processes left in the same place is removed.

    Attributes:
        folder: The folder.
    """

    def __init__(self, beside: Path | None = None) -> None:
        """Make the folder.

        Args:
            beside: A file in whose folder it is to be, hidden, so that files can be moved from one to the other; None
                puts it where temporary files go.

        Raises:
            ScratchError: If there is no room for it, or no place that can be written to.
        """
        try:
            place = Path(tempfile.gettempdir()) if beside is None else beside.parent
            remove_abandoned(place)
            self.folder, lock = _made(place, _PREFIX if beside is None else f".{_PREFIX}")
        except OSError as error:
            if beside is not None:
                raise
            raise ScratchError(
                f"no temporary folder can be made ({error.strerror or error}): make room or set TMPDIR to another one"
            ) from error
        self._remove = weakref.finalize(self, _remove, self.folder, lock, os.getpid())

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder now."""
        self._remove()


def place_for(file: Path) -> Path:
    """Return such a path as a folder beside ``file`` would have."""
    return file.with_name(f".{_PREFIX}{'x' * 8}")


def remove_abandoned(place: Path) -> None:
    """Remove the folders in ``place`` whose processes were killed; what cannot be removed stays for the next time."""
    try:
        names = [name for name in os.listdir(place) if _LOCKS.fullmatch(name)]
    except OSError:
        return
    for name in names:
        path = place / name
        lock = _taken(path)
        if lock is not None and (lock.read().decode(errors="replace") in ("", _here()) or _age(path) > _ELSEWHERE_S):
            _delete(path.with_suffix(""), lock)


def _made(place: Path, prefix: str) -> tuple[Path, IO[bytes] | None]:
    """Return a new folder and the lock on it; None where the file system knows no locks."""
    while True:
        descriptor, name = tempfile.mkstemp(_SUFFIX, prefix, place)
        folder, lock = Path(name.removesuffix(_SUFFIX)), os.fdopen(descriptor, "r+b")
        try:
            is_mine = _lock(lock) and _is(lock, Path(name))
        except OSError:
            lock.close()
            os.unlink(name)
            folder.mkdir(0o700)
            return folder, None
        if not is_mine:
            continue  # another process took it for abandoned, in the moment before it was locked
        lock.write(_here().encode())
        lock.flush()
        folder.mkdir(0o700)
        return folder, lock


def _taken(path: Path) -> IO[bytes] | None:
    """Return the lock of a folder whose process is gone, or None: then it is somebody's."""
    try:
        if not _is_own(path):
            return None
        lock = path.open("r+b")
        return lock if _lock(lock) and _is(lock, path) else None
    except OSError:
        return None


def _is_own(path: Path) -> bool:
    """Return whether ``path`` is a file of this user, and no link to one."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and (sys.platform == "win32" or found.st_uid == os.geteuid())


def _is(file: IO[bytes], path: Path) -> bool:
    """Return whether ``path`` still names the open file: another process may have removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except OSError:
        return False


def _remove(folder: Path, lock: IO[bytes] | None, owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the owner, which has its own copy of the object
    if lock is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _delete(folder, lock)


def _delete(folder: Path, lock: IO[bytes]) -> None:
    """Remove a folder and then its lock: in this order, what interrupts it leaves something to be found."""
    shutil.rmtree(folder, ignore_errors=True)
    path = folder.with_name(f"{folder.name}{_SUFFIX}")
    if sys.platform == "win32":
        lock.close()  # what is open cannot be removed there
    if not folder.exists():
        path.unlink(missing_ok=True)
    lock.close()


def _here() -> str:
    """Return the name of this machine."""
    return platform.node()


def _age(path: Path) -> float:
    """Return how many seconds ago a file was written; 0 where it is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0
