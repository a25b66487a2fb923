"""Which replica answers: the one that holds the conversation, unless it is gone or full, or one with little to do.

Ray Serve's own routing asks this router, and does the rest: it knows the replicas, how many requests each has, and that
one has died.
"""

import random
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica

# Not defined here: Ray Serve sends this module to the routers by value.
from louiskv.serving.conversations import Course

# What a replica tells of itself, and under which name its conversations stand there.
CONVERSATIONS = "conversations"


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

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica that holds the conversation, then any two; those that had no room come last."""
        course = Course()
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            course = next((each for each in pending_request.args if isinstance(each, Course)), course)
        fresh = [each for each in candidate_replicas if each.replica_id.unique_id not in course.tried]
        others = random.sample(fresh, min(2, len(fresh)))
        ranks = [self._holders(fresh, course), others, fresh, candidate_replicas]
        return [rank for rank in ranks if rank]

    def _holders(self, replicas: Sequence[RunningReplica], course: Course) -> list[RunningReplica]:
        """Replicas that hold the conversation and have a row for it, if any has."""
        holders = [each for each in replicas if each.replica_id.unique_id == course.place]
        for key in course.keys:
            holders = holders or [each for each in replicas if key in each.routing_stats.get(CONVERSATIONS, ())]
        if any(self._waits(each) for each in holders) and not all(self._waits(each) for each in replicas):
            return [each for each in holders if not self._waits(each)]
        return holders

    def _waits(self, replica: RunningReplica) -> bool:
        """Whether a request would wait there for a row."""
        return (self.replica_queue_len_cache.get(replica.replica_id) or 0) >= self.rows
