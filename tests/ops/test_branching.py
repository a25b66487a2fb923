"""What a graph leaves out where nothing holds; elsewhere it simply runs."""

import pytest
import torch

from louiskv.ops import nvcc
from louiskv.ops.branching import Branches, makes_branches, only_if
from tests.ops.devices import DEVICES


@pytest.mark.parametrize("device", DEVICES)
def test_outside_of_a_graph_it_runs(device: str) -> None:
    total = torch.zeros(1, device=device)
    for flag in (True, False):
        assert not makes_branches()
        with only_if(torch.tensor([flag], device=device)):
            total += 1
    assert total.item() == 2


@pytest.mark.parametrize("device", DEVICES)
def test_in_a_graph_it_runs_where_a_flag_holds(device: str) -> None:
    flags, total, after = torch.zeros(70, dtype=torch.bool, device=device), *torch.zeros(2, 1, device=device)
    assert nvcc.knows_branches() == torch.cuda.is_available()

    def work() -> None:
        with only_if(flags):
            total.add_(flags.sum().to(total.dtype) + 10)
        after.add_(1)

    if device == "cpu":
        work()
        assert (total.item(), after.item()) == (10, 1)
        return
    work()
    total.zero_()
    after.zero_()
    graph, branches = torch.cuda.CUDAGraph(), Branches(torch.device(device))
    with branches.capture(graph):
        assert makes_branches()
        work()
    expected = 0
    for held in ([], [69], [], [3, 4]):
        flags.zero_()
        flags[held] = True
        graph.replay()
        expected += 10 + len(held) if held else 0
        assert total.item() == expected
    assert after.item() == 4, "what follows runs in any case"


@pytest.mark.parametrize("device", DEVICES)
def test_any_number_of_graphs_have_branches(device: str) -> None:
    flags, total = torch.zeros(3, dtype=torch.bool, device=device), torch.zeros(1, device=device)

    def work() -> None:
        with only_if(flags):
            total.add_(1)

    for _ in range(70):  # torch gives out the same 32 streams again and again
        if device == "cpu":
            work()
            continue
        graph = torch.cuda.CUDAGraph()
        with Branches(torch.device(device)).capture(graph):
            work()
        flags.fill_(False)
        graph.replay()
        flags.fill_(True)
        graph.replay()
    assert total.item() == 70
