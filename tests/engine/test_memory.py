"""Whether a request fits beside others, against the plan of each."""

import pytest
import torch

from louiskv import Full, HostMemoryError, LouisKV, Method
from louiskv.engine.memory import Memory
from louiskv.errors import DeviceMemoryError
from louiskv.plan import plan
from tests.families import tiny

CONFIG = tiny("llama").config
METHOD = LouisKV(budget=100, sink=4, window=32, dense_layers=1)


def memory(device: str, method: Method = METHOD) -> Memory:
    return Memory(CONFIG, method, torch.device(device), torch.float32)


def test_every_row_needs_as_much_as_the_longest() -> None:
    one, prompt = plan(CONFIG, METHOD, 512), plan(CONFIG, METHOD, 768)
    need = memory("cuda").needed(4, 500, [700])
    assert need.host == 4 * one.host_bytes + prompt.host_bytes
    assert need.device == 4 * one.device_bytes + prompt.device_bytes + prompt.prefill_bytes
    shared = memory("cpu").needed(4, 500, [700])
    assert shared.host == need.host + need.device, "on a CPU all of it is host memory"
    assert memory("cuda").of_sequence(500) == one.host_bytes + one.device_bytes


def test_what_is_kept_takes_room() -> None:
    for device in ("cpu", "cuda"):
        limited = memory(device)
        need = limited.needed(1, 256, [256])
        limited.set_limits(need.host + 30, need.device + 20)
        assert limited.fits(need, (10, 20))
        assert not limited.fits(need, (10, 21))
        assert limited.fits(need, (30, 0))
        assert not limited.fits(need, (31, 0))


def test_what_can_never_fit_says_what_it_needs() -> None:
    limited = memory("cuda")
    need = limited.needed(1, 256, [256])
    limited.set_limits(need.host, need.device)
    limited.check(256)
    with pytest.raises(HostMemoryError, match="A sequence of 257 tokens needs .* of host memory.*host_memory"):
        limited.check(257)
    all_on_device = memory("cuda", Full())
    all_on_device.set_limits(2**20, 2**20)
    with pytest.raises(DeviceMemoryError, match="of device memory.*device_memory"):
        all_on_device.check(2000)
