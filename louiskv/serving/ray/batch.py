"""A batch on many machines with Ray Data: actors that each hold an engine, and are given lines as they have rows."""

import asyncio
import logging
import pickle
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayActorError, UserCodeException
from ray.util.annotations import RayDeprecationWarning

from louiskv.errors import LouisKVError
from louiskv.serving.app import make_app
from louiskv.serving.batch.answering import QUEUE, answer
from louiskv.serving.batch.lines import Line
from louiskv.serving.life import Life
from louiskv.serving.ray.cluster import ClusterError, last_line
from louiskv.serving.ray.fleet import Fleet
from louiskv.serving.ray.replica import Blueprint

# Blocks of lines that are in an engine at once: while the last answers of one are waited for, others have the rows.
BLOCKS = 3
# How often an actor that was lost begins anew, and a block that was lost with it is answered anew.
RESTARTS, RETRIES = 8, 3
GOES_ON = "The same call goes on with the lines that are left."
# A line of the output, or why there is none.
Told = dict[str, Any] | LouisKVError


class Answering:
    """An engine that answers blocks of lines, several at a time."""

    def __init__(self, blueprint: Blueprint, fleet: Fleet) -> None:
        engine, prompts, method = blueprint.build(fleet.per_node())
        self._app = make_app(engine, prompts, blueprint.name, method, life=Life(), limits=blueprint.limits)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __call__(self, blocks: dict[str, Sequence[bytes]]) -> dict[str, list[bytes]]:
        """Answer the lines of blocks."""
        return {"told": [pickle.dumps(self._answer(pickle.loads(block))) for block in blocks["lines"]]}

    def _answer(self, lines: Sequence[Line]) -> list[Told]:
        return asyncio.run_coroutine_threadsafe(self._all(lines), self._loop).result()

    async def _all(self, lines: Sequence[Line]) -> list[Told]:
        return await asyncio.gather(*map(self._one, lines))

    async def _one(self, line: Line) -> Told:
        try:
            return await answer(self._app, line)
        except LouisKVError as error:
            return error


def answers_of(lines: Sequence[Line], blueprint: Blueprint, fleet: Fleet) -> Iterator[dict[str, Any]]:
    """The lines of the output, as they come.

    An actor that is lost is replaced, and what it was answering is answered anew.

    Raises:
        ClusterError: Actors are lost again and again, one has an error of its own, or the cluster is lost.
        EngineStoppedError: Nothing more can be answered.
        NoAnswerError: A line has no answer; the others of its block are given before.
    """
    rows = dict(blueprint.engine).get("rows") or 8
    blueprint = replace(blueprint, engine=(*blueprint.engine, ("queue", QUEUE)))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # What it would tell of an error is told by what is raised.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    blocks = [pickle.dumps(lines[first : first + rows]) for first in range(0, len(lines), rows)]
    try:
        for row in _mapped(blocks, blueprint, fleet).iter_rows():
            told: list[Told] = pickle.loads(row["told"])
            yield from (each for each in told if not isinstance(each, LouisKVError))
            for each in told:
                if isinstance(each, LouisKVError):
                    raise each
    except RayActorError as error:
        if error.actor_init_failed:
            raise
        raise ClusterError(_lost(str(error))) from error
    except UserCodeException as error:
        raise ClusterError(f"A replica had an error of its own ({_cause(str(error))}). {GOES_ON}") from error
    except ConnectionError as error:
        raise ClusterError(f"The cluster is lost ({error}). {GOES_ON}") from error


def _mapped(blocks: Sequence[bytes], blueprint: Blueprint, fleet: Fleet) -> ray.data.Dataset:
    """What the actors make of blocks of lines."""
    pool = ActorPoolStrategy(
        min_size=fleet.min_replicas,
        max_size=fleet.max_replicas,
        max_tasks_in_flight_per_actor=2 * BLOCKS,
        max_concurrent_calls_per_actor=BLOCKS,
        enable_true_multi_threading=True,
    )
    asked = ray.data.from_items([{"lines": block} for block in blocks], override_num_blocks=len(blocks))
    with warnings.catch_warnings():
        # There is no other way to say how often, and without it, it is for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return asked.map_batches(
            Answering,
            fn_constructor_args=(blueprint, fleet),
            # With GPUs Ray Data wants a size; here each block is one row.
            batch_size=1,
            compute=pool,
            num_cpus=fleet.cpus,
            num_gpus=fleet.gpus,
            max_restarts=RESTARTS,
            max_task_retries=RETRIES,
        )


def _lost(message: str) -> str:
    """What is told of an actor that was lost too often, out of what Ray tells of it."""
    times = f"{RETRIES + 1} times over the same lines, or {RESTARTS + 1} times in all"
    reason = last_line(message).rstrip(".")
    return f"A replica was lost {times} ({reason}). {GOES_ON}"


def _cause(message: str) -> str:
    """What an actor has raised, out of a traceback that ends with what Ray Data says of it."""
    raised, _, told = message.rpartition("\n\nThe above exception was the direct cause")
    return last_line(raised or told).rstrip(".")
