"""A batch on many machines with Ray Data: actors that each hold an engine, and are given lines as they have rows."""

import asyncio
import json
import logging
import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy, DataContext

from louiskv.serving.app import make_app
from louiskv.serving.batch.answering import QUEUE, answer
from louiskv.serving.batch.lines import Line
from louiskv.serving.life import Life
from louiskv.serving.ray.fleet import Fleet
from louiskv.serving.ray.replica import Blueprint

# Blocks of lines that are in an engine at once: while the last answers of one are waited for, others have the rows.
BLOCKS = 3


class Answering:
    """An engine that answers blocks of lines, several at a time."""

    def __init__(self, blueprint: Blueprint, fleet: Fleet) -> None:
        engine, prompts, method = blueprint.build(fleet.per_node())
        self._app = make_app(engine, prompts, blueprint.name, method, life=Life(), limits=blueprint.limits)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __call__(self, block: dict[str, Sequence[bytes]]) -> dict[str, list[str]]:
        """Answer the lines of a block."""
        answers = asyncio.run_coroutine_threadsafe(self._all(list(map(pickle.loads, block["line"]))), self._loop)
        return {"told": [json.dumps(told) for told in answers.result()]}

    async def _all(self, lines: Sequence[Line]) -> list[dict[str, Any]]:
        return await asyncio.gather(*(answer(self._app, line) for line in lines))


def answers_of(lines: Sequence[Line], blueprint: Blueprint, fleet: Fleet) -> Iterator[dict[str, Any]]:
    """The lines of the output, as they come.

    An actor that is lost is replaced, and what it was answering is answered anew.
    """
    rows = dict(blueprint.engine).get("rows") or 8
    blueprint = replace(blueprint, engine=(*blueprint.engine, ("queue", QUEUE)))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    pool = ActorPoolStrategy(
        min_size=fleet.min_replicas,
        max_size=fleet.max_replicas,
        max_tasks_in_flight_per_actor=2 * BLOCKS,
        max_concurrent_calls_per_actor=BLOCKS,
        enable_true_multi_threading=True,
    )
    blocks = -(-len(lines) // rows)
    asked = ray.data.from_items([{"line": pickle.dumps(line)} for line in lines], override_num_blocks=blocks)
    told = asked.map_batches(
        Answering,
        fn_constructor_args=(blueprint, fleet),
        batch_size=None,
        compute=pool,
        num_cpus=fleet.cpus,
        num_gpus=fleet.gpus,
    )
    for row in told.iter_rows():
        yield json.loads(row["told"])
