"""The processes that torchrun has started for one run: the first one speaks, and what goes wrong is told once."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

from torch import distributed

from louiskv.cli.failures import UsageError
from louiskv.ranks import Ranks

# Commands that split a model over the ranks.
SPLITTING = ("generate",)
# How long the other ranks wait for the first one to tell what went wrong with all of them.
PATIENCE = timedelta(seconds=3)


def check_command(name: str) -> None:
    """Raise `UsageError` if several ranks run a command that is for one process."""
    num_ranks = Ranks.of_environment().num_ranks
    if num_ranks > 1 and name not in SPLITTING:
        able = " and ".join(f"louiskv {each}" for each in SPLITTING)
        raise UsageError(
            f"louiskv {name} runs in one process, but torchrun has started {num_ranks}: call it without torchrun. "
            f"What splits a model over ranks is {able}."
        )


def is_alone() -> bool:
    """Whether there are no other ranks."""
    return Ranks.of_environment().num_ranks == 1


@contextmanager
def as_one() -> Iterator[None]:
    """Let only the first rank print, and the ranks part when all have come to their end."""
    ranks = Ranks.of_environment()
    if ranks.rank == 0:
        yield
    else:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    if ranks.num_ranks > 1 and distributed.is_initialized():
        distributed.destroy_process_group()


def tell(message: str) -> None:
    """Print what ends this rank on standard error, unless another rank tells what ends them all.

    What goes wrong with all ranks, the first one tells. A rank that fails because another has gone tells nothing.
    """
    ranks = Ranks.of_environment()
    if is_alone():
        print(message, file=sys.stderr)
        return
    store = _store()
    if ranks.rank:
        with suppress(distributed.DistError):
            store.wait(["told"], PATIENCE)
    if store.add("tellers", 1) == 1:
        print(f"rank {ranks.rank}: {message}" if ranks.rank else message, file=sys.stderr, flush=True)
        store.set("told", "")
    # When one rank has gone, torchrun ends the others: not before all is told.
    with suppress(distributed.DistError):
        store.wait(["told"], PATIENCE)


def _store() -> Any:
    """The store that torchrun keeps for its ranks; it is there before they have found each other."""
    # Not in every build of torch.
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
    return PrefixStore(f"louiskv/{attempt}", store)
