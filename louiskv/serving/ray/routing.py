"""Which replica answers: the one that holds the conversation, unless it is gone or full, or one with little to do.

Ray Serve's own routing asks this router, and does the rest: it knows the replicas, how many requests each has, and that
one has died.
"""

import random
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import LocalityMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

# Not defined here: Ray Serve sends this module to the routers by value.
from louiskv.serving.conversations import Course

# What a replica tells of itself, and under which name its conversations stand there.
CONVERSATIONS = "conversations"
# Replicas that are compared: of very many, any so many.
COMPARED = 8
# Seconds until a replica has said how many requests it has with the one that it was sent.
TOLD_AFTER = 1.0


class ConversationRouter(LocalityMixin, RequestRouter):
    """Sends a conversation to the replica that holds its cache.

    It waits for that one as long as no other has a free row: then to take the prompt in again is the lesser evil.
    """

    # Replicas that compute with all their cores are late with an answer.
    queue_len_response_deadline_s = 1.0
    max_queue_len_response_deadline_s = 4.0

    def initialize_state(self, rows: int = 1, **others: Any) -> None:
        """Learn how many answers a replica decodes at once."""
        self.rows = rows
        self._sent: dict[ReplicaID, deque[float]] = defaultdict(deque)
        self._last: dict[ReplicaID, float] = defaultdict(float)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One after the other: who holds the conversation, who has least to do, and last those that had no room."""
        # What is known of a replica is forgotten after a while; one that says nothing then has no row.
        silent = [each for each in candidate_replicas if self._last_known(each) is None]
        if silent:
            await self._probe_queue_lens(silent, 0)
        course = Course()
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            course = next((each for each in pending_request.args if isinstance(each, Course)), course)
        fresh = [each for each in candidate_replicas if each.replica_id.unique_id not in course.tried]
        # In turns where they have as much to do: conversations begun one after the other have all memory there is.
        others = sorted(random.sample(fresh, min(COMPARED, len(fresh))), key=self._load_and_last)
        ranked = [*self._holders(fresh, course), *others]
        if ranked:
            first = ranked[0].replica_id
            self._last[first] = time.monotonic()
            self._sent[first].append(self._last[first])
        return [[each] for each in ranked] or [candidate_replicas]

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """What a replica says of itself, with what it was sent before."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        if self._sent[replica_id]:
            self._sent[replica_id].popleft()

    def _holders(self, replicas: Sequence[RunningReplica], course: Course) -> list[RunningReplica]:
        """Replicas that hold the conversation and have a row for it, if any has."""
        holders = [each for each in replicas if each.replica_id.unique_id == course.place]
        if not holders and course.keys:
            told = [(each, set(each.routing_stats.get(CONVERSATIONS, ()))) for each in replicas]
            held = ([each for each, keys in told if key in keys] for key in course.keys)
            holders = next(filter(None, held), [])
        if all(self._load(each) >= self.rows for each in replicas):
            return holders
        return [each for each in holders if self._load(each) < self.rows]

    def _load_and_last(self, replica: RunningReplica) -> tuple[int, float]:
        """What a replica has to do, and when it was given something last."""
        return self._load(replica), self._last[replica.replica_id]

    def _load(self, replica: RunningReplica) -> int:
        """Requests that a replica has, with those sent a moment ago that it has not counted yet."""
        sent, now = self._sent[replica.replica_id], time.monotonic()
        while sent and now - sent[0] > TOLD_AFTER:
            sent.popleft()
        known = self._last_known(replica)
        return (self.rows if known is None else known) + len(sent)

    def _last_known(self, replica: RunningReplica) -> int | None:
        return self.replica_queue_len_cache.get(replica.replica_id)
