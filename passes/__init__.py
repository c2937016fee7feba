"""One file a published method: its algebra, its subgraph, its costs; :mod:`.base` says what all of them offer.

Third parties register theirs in the entry-point group ``onnxlowrank.passes``. A pass may know
:mod:`onnxlowrank.decompose` and the layers and chains of :mod:`onnxlowrank.graph`, never ONNX itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from onnxlowrank.boundary import foreign, typed_reason
from onnxlowrank.errors import OptionError, UserFunctionError
from onnxlowrank.passes.base import Pass

GROUP = "onnxlowrank.passes"
ALL = "all"
"""In place of names: every registered pass."""


def pass_names() -> list[str]:
    """Return the names of all registered passes."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def load_passes(names: Sequence[str] | None = None) -> tuple[Pass, ...]:
    """Return the registered passes called ``names``, in that order, or all of them in the order of their names.

    Raises:
        OptionError: If a name is not registered.
    """
    registered = {entry.name: entry for entry in entry_points(group=GROUP)}
    chosen = sorted(registered) if names is None else list(names)
    for name in chosen:
        if name not in registered:
            raise OptionError(f"there is no pass {name!r}; choose from {', '.join(sorted(registered))}")
    return tuple(_loaded(registered[name]) for name in chosen)


def chosen_passes(names: Sequence[str] | None) -> tuple[Pass, ...]:
    """Return the passes to choose from: those named, all there are for ``all``, and where none are named the usual.

    Raises:
        OptionError: If a name is not registered.
    """
    if names is None:
        return tuple(one for one in load_passes() if one.by_default)
    return load_passes(None if list(names) == [ALL] else names)


def _loaded(entry: EntryPoint) -> Pass:
    """Return a registered pass, which may be anybody's."""
    with foreign(
        lambda error: UserFunctionError(
            f"the pass {entry.name!r} cannot be loaded ({typed_reason(error)}); correct it"
        ),
        BaseException,
    ):
        made: Pass = entry.load()()
        return made
