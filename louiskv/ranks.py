"""What torchrun says of the processes that it has started for one run."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of a run.

    Attributes:
        rank: Place of this process.
        num_ranks: Processes of the run.
        local_rank: Place among those on this machine.
    """

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> "Ranks":
        """As torchrun has set it; one rank without torchrun."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        # Some clusters set one or two of them for every process, distributed or not.
        return cls(*(int(os.environ[name]) for name in names)) if all(name in os.environ for name in names) else cls()
