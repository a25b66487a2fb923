"""The model type `louiskv` of the lm-evaluation-harness: its generative tasks, answered with a method attached.

Importing this registers the type. The harness's own command knows only its own types; this module runs that command
with one more:

    python -m louiskv.evaluation.harness --model louiskv --model_args pretrained=NAME,method=quest --tasks gsm8k
"""

import sys
from typing import Any, NoReturn

from torch import Tensor
from transformers import PreTrainedModel

from louiskv.attach import attach
from louiskv.errors import LouisKVError, SettingsError
from louiskv.methods import METHODS, Method

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    way_out = f"The harness needs {error.name}: pip install 'louiskv[eval]'."
    raise ModuleNotFoundError(way_out, name=error.name) from error


@register_model("louiskv")
class LouisKVLM(HFLM):
    """The harness's model of transformers, generating with keys and values managed by a method."""

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        *,
        method: str | Method = "louiskv",
        budget: int | None = None,
        impl: str | None = None,
        **options: Any,
    ) -> None:
        """Load the model, or take one that is loaded.

        Args:
            pretrained: Name of the hub, folder, or the model itself; then give its `tokenizer`, too.
            method: The method, or its name.
            budget: Its budget; None takes the method's own. At a small one, sinks and window are smaller as well.
            impl: Implementation of the operations; None takes the best that can run.
            **options: What the harness's own type `hf` takes, such as `batch_size`.

        Raises:
            SettingsError: There is no such method, or the budget is too small for it.
            NotCalibratedError: The method needs something that was not measured on the model yet.
        """
        chosen = _named(method) if isinstance(method, str) else method
        if budget is not None:
            chosen = chosen.at_budget(budget)
        super().__init__(pretrained, **options)
        self.method, self.impl = chosen.for_model(self.model), impl

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> NoReturn:
        """Refuse.

        Raises:
            SettingsError: Always: what is scored is a prompt, nothing is decoded, and every method would score alike.
        """
        raise SettingsError(
            "The model type louiskv has no log-likelihoods: they are read off a prompt, which every method takes in by "
            "full attention. Choose tasks that generate (output_type: generate_until), or the model type hf."
        )

    loglikelihood_rolling = loglikelihood

    def _model_generate(self, *args: Any, **options: Any) -> Tensor:
        with attach(self.model, self.method, impl=self.impl):
            return super()._model_generate(*args, **options)


def _named(name: str) -> Method:
    if name not in METHODS:
        raise SettingsError(f"There is no method {name!r}. The methods are: {', '.join(METHODS)}.")
    return METHODS[name]()


if __name__ == "__main__":
    try:
        cli_evaluate()
    except LouisKVError as error:
        sys.exit(f"error: {error}")
