"""Low-rank deltas. (Filled in below.)"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LowRankDeltas:
    pass
