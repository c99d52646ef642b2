"""The bugs that `plant.py` plants: one a line of thought, all over the package."""
from typing import NamedTuple


class Bug(NamedTuple):
    "A small change that makes the package wrong"
    module: str         # below trickbag/
    old: str            # stands there exactly once
    new: str
    tests: tuple        # arguments of pytest: where somebody should see it
    kind: str = ''      # 'sign', 'off by one', 'missing copy', 'no reset', 'axis', 'order', 'silent', ...
    reason: str = ''    # of a bug that no test can see: why


PLANTED = []
