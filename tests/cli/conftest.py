"""What tests of commands share: a command in a folder of its own, beside that of the networks and data it reads."""

from pathlib import Path

import pytest
from helpers.processes import Command, Ended, folders, run_to_end


@pytest.fixture
def command(place: Path, tmp_path: Path) -> Command:
    """Return a function that runs the command in a folder beside ``in`` and names the folder after the test."""
    count = iter(range(100))

    def call(*arguments: str, before: str = "") -> Ended:
        where = folders(place, f"{tmp_path.name} {next(count)}")
        return run_to_end(arguments, *where, before)

    return call
