"""Which heads of a model lie with this process, where tensor parallelism has spread them over several."""

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, distributed, nn

from louiskv.errors import UnsupportedModelError

T = TypeVar("T")

# Projections that give keys, alone or beside queries and values; transformers tells split heads by the same names.
_KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")


@dataclass(frozen=True)
class Shard:
    """The place of a process among the ranks that hold a model together.

    Attributes:
        rank: Place of this process.
        num_ranks: Processes that hold the model together.
        splits_heads: Whether each holds KV heads of its own, the first rank the first ones; else each holds all.
        group: Process group of the ranks; None where there is one rank.
    """

    rank: int = 0
    num_ranks: int = 1
    splits_heads: bool = False
    group: Any = None

    @classmethod
    def of(cls, model: nn.Module) -> "Shard":
        """The place of this process among those that hold a model.

        Raises:
            UnsupportedModelError: The model's layers are spread over ranks.
        """
        mesh: Any = getattr(model, "_device_mesh", None)
        if mesh is None:
            return WHOLE
        config: Any = model.config
        if config.distributed_config.pp_size > 1:
            raise UnsupportedModelError(
                f"{type(model).__name__} is spread over ranks by its layers (pipeline parallelism), which louiskv does "
                "not manage: load it with DistributedConfig(tp_size=...)."
            )
        num_ranks: Any = model.tp_size
        if num_ranks == 1:
            return WHOLE
        mesh = mesh["tp"] if mesh.ndim > 1 else mesh
        plan: Any = model.tp_plan
        return cls(mesh.get_local_rank(), num_ranks, splits_heads(plan), mesh.get_group())

    def __deepcopy__(self, memo: Any) -> "Shard":
        """Itself: a copy of a cache is on the same ranks."""
        return self

    @property
    def num_parts(self) -> int:
        """In how many parts the heads of a layer are split."""
        return self.num_ranks if self.splits_heads else 1

    @property
    def part(self) -> int:
        """Which of them this process holds."""
        return self.rank if self.splits_heads else 0

    def mean(self, figures: Tensor) -> Tensor:
        """The mean of every part's figures, the same on all ranks; on a GPU nothing waits for it.

        All ranks must ask at the same place.
        """
        if self.num_parts == 1:
            return figures
        mean = figures / self.num_parts
        distributed.all_reduce(mean, group=self.group)
        return mean

    def gather(self, value: T) -> list[T]:
        """What each rank has, the first rank's first: plain data, no tensors. All ranks must ask at the same place."""
        if self.num_ranks == 1:
            return [value]
        values: list[Any] = [None] * self.num_ranks
        distributed.all_gather_object(values, value, group=self.group)
        return values


WHOLE = Shard()


def splits_heads(plan: dict[str, str]) -> bool:
    """Whether a tensor-parallel plan of transformers gives each rank KV heads of its own."""
    return any(style == "colwise" and name.rsplit(".", 1)[-1] in _KEY_PROJECTIONS for name, style in plan.items())


def kv_heads_of(config: Any) -> int:
    """KV heads of a layer in a decoder of this config."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads


def check_heads(name: str, num_kv_heads: int, num_parts: int) -> None:
    """Raise `UnsupportedModelError` unless so many parts can have as many KV heads each; `name` is the model's."""
    if num_kv_heads % num_parts:
        sizes = [str(size) for size in range(1, num_kv_heads + 1) if num_kv_heads % size == 0]
        raise UnsupportedModelError(
            f"{name} has {num_kv_heads} KV heads in a layer, which {num_parts} ranks cannot share evenly: a KV head "
            f"cannot be cut. Use {' or '.join(sizes)} ranks (torchrun --nproc-per-node)."
        )


def on_this_rank(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be spread over ranks."""
    local: Any = getattr(tensor, "to_local", None)
    return tensor if local is None else local()
