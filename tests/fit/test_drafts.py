"""Drafts are made once a setting, whatever energy a candidate promises, and forgotten when told."""

from dataclasses import replace

from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.passes.base import Candidate


class Counting:
    """A pass that counts its drafts."""

    def __init__(self):
        self.made = []

    def draft(self, layer, setting, statistics):
        self.made.append((setting, statistics))
        return object()


class Named:
    name = "conv"


def test_drafts_are_made_once_and_forgotten_when_told():
    method = Counting()
    drafts = Drafts({"conv": {"cp": method}}, {"conv": "statistics"})
    one, other = (Candidate("conv", "cp", (rank,), 10, 10, 0.9) for rank in (1, 2))
    first = drafts.of(Named, one)
    assert drafts.of(Named, replace(one, energy=0.5)) is first
    drafts.of(Named, other)
    assert method.made == [((1,), "statistics"), ((2,), "statistics")]
    drafts.keep_only([replace(other, energy=0.1)])
    drafts.of(Named, other)
    assert len(method.made) == 2
    assert drafts.of(Named, one) is not first
