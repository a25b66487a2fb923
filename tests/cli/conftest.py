"""The real default model, loaded once for all tests of the command."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner, Result

from louiskv import calibration, heads, models
from louiskv.cache_layer import CacheLayer
from louiskv.cli.commands import app

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Run = Callable[..., Result]


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    """The default model and its tokenizer."""
    return models.load(device="cpu")


@pytest.fixture(scope="session")
def head_scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for head scores that is empty at first."""
    return tmp_path_factory.mktemp("heads")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, loaded: Loaded, head_scores: Path) -> Run:
    """Runs `louiskv` with arguments, in this process; the default model is not loaded again, heads are scored fast."""
    monkeypatch.setattr(heads, "_folder", lambda: head_scores)
    monkeypatch.setattr(calibration, "score_heads", partial(calibration.score_heads, block=32))
    load, load_config = models.load, models.load_config

    def loading(name: str, **options: Any) -> Loaded:
        own = name == models.DEFAULT_MODEL and options == {"dtype": "auto", "device": "auto"}
        return loaded if own else load(name, **options)

    def loading_config(name: str = models.DEFAULT_MODEL) -> PretrainedConfig:
        return loaded[0].config if name == models.DEFAULT_MODEL else load_config(name)

    monkeypatch.setattr(models, "load", loading)
    monkeypatch.setattr(models, "load_config", loading_config)

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="louiskv", catch_exceptions=False)

    return run


def interrupt_in_layer(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Press Ctrl-C while that layer computes the attention of a prompt."""
    attend = CacheLayer.attend

    def attending(layer: CacheLayer, *args: Any) -> Any:
        if layer.index == index and args[0].shape[2] > 1:
            signal.raise_signal(signal.SIGINT)
        return attend(layer, *args)

    monkeypatch.setattr(CacheLayer, "attend", attending)
