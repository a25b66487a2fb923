"""Loading a model quietly, and what is to be known of the run."""

import platform
import warnings

import torch
import transformers
from huggingface_hub.utils import logging as hub_logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

import louiskv
from louiskv import calibration, models
from louiskv.cli.options import ModelChoice
from louiskv.errors import NotCalibratedError, SettingsError
from louiskv.methods import Method
from louiskv.ops import OPS
from louiskv.ops.dispatch import choose
from louiskv.ranks import Ranks


def load(choice: ModelChoice, console: Console) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and its tokenizer; only the console hears of it."""
    check_name_of_implementation(choice.impl)
    be_quiet()
    with console.status(f"Loading {choice.name}"):
        ranks = Ranks.of_environment()
        model, tokenizer = models.load(choice.name, dtype=choice.dtype, device=choice.device, ranks=ranks)
    _make_ready(choice.impl, model.device, model.dtype, console)
    return model, tokenizer


def prepare(choice: ModelChoice, console: Console) -> tuple[torch.device, torch.dtype]:
    """Where a model of another source is to be, and in which numbers; the dtype must be a named one."""
    check_name_of_implementation(choice.impl)
    be_quiet()
    device, dtype = models.find_device(choice.device), getattr(torch, choice.dtype)
    _make_ready(choice.impl, device, dtype, console)
    return device, dtype


def ready(model: PreTrainedModel, method: Method, console: Console) -> Method:
    """The method as it is for the model; what it needs to know of it is measured now if it never was."""
    try:
        return method.for_model(model)
    except NotCalibratedError:
        columns = TextColumn("measuring heads, once for this model"), BarColumn(), MofNCompleteColumn()
        bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal)
        with bar:
            task = bar.add_task("", total=None)
            calibration.score_heads(model, progress=lambda done, total: bar.update(task, completed=done, total=total))
    return method.for_model(model)


def be_quiet() -> None:
    """Keep the libraries that read models from writing to the terminal; their errors reach the user as ours."""
    for library in (transformers_logging, hub_logging):
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def versions() -> dict[str, str]:
    """Versions of what decides over a result."""
    return {
        "louiskv": louiskv.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def check_name_of_implementation(impl: str | None) -> None:
    """Refuse a name that no operation knows.

    Raises:
        SettingsError: It is one.
    """
    known = sorted({candidate.name for candidates in OPS.values() for candidate in candidates})
    for name in [] if impl is None else impl.split(","):
        if name not in known:
            raise SettingsError(f"There is no implementation {name!r}. There are: {', '.join(known)}.")


def _make_ready(impl: str | None, device: torch.device, dtype: torch.dtype, console: Console) -> None:
    """Compile and refuse now what would be compiled and refused after the prompt, in the middle of an answer."""
    like = torch.empty(0, device=device, dtype=dtype)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for op, candidates in OPS.items():
            choose(op, candidates, impl, like)
    for each in told:
        console.print(str(each.message), style="yellow", highlight=False, markup=False)
