"""What becomes of a request: its fields are checked, its prompt is made into tokens, and the engine is asked."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from louiskv.engine import Answer, Engine, Request, Sampling
from louiskv.errors import SettingsError
from louiskv.methods import METHODS, Method
from louiskv.serving.asked import Asked
from louiskv.serving.errors import ApiError, as_api_error, too_long
from louiskv.serving.fields import MAX_NAME, ChatBody, Common, CompletionBody, Own
from louiskv.serving.heat import heat_of
from louiskv.serving.life import Life
from louiskv.serving.messages import read_messages
from louiskv.serving.metrics import Metrics
from louiskv.serving.prompts import Prompt, Prompts
from louiskv.serving.reply import Events, Reply, Whole
from louiskv.serving.shapes import ChatShape, CompletionShape, Shape

# Watched answers that can be asked about: each keeps a number for every layer and token.
MAX_WATCHED = 16


@dataclass(frozen=True)
class Limits:
    """What one request may be.

    Attributes:
        max_body: Bytes of a body.
        max_prompt: Tokens of a prompt; None for what the engine takes.
    """

    max_body: int = 16 * 2**20
    max_prompt: int | None = None


class Desk:
    """Takes requests to an engine.

    Attributes:
        engine: Answers.
        model: The name by which clients know the model.
        method: What the engine runs.
    """

    def __init__(
        self, engine: Engine, prompts: Prompts, metrics: Metrics, life: Life, limits: Limits, model: str, method: Method
    ) -> None:
        self.engine, self.prompts, self.metrics, self.life, self.limits = engine, prompts, metrics, life, limits
        self.model, self.method = model, method
        self._watched: OrderedDict[str, tuple[Prompt, Answer]] = OrderedDict()

    async def chat(self, body: ChatBody) -> Response:
        """Answer a chat; raises `ApiError`."""
        self._check(body)
        messages = read_messages(body.messages)
        self._check_text(sum(len(message["content"]) for message in messages), body, "messages")
        prompt = await run_in_threadpool(self.prompts.of_chat, messages, body.louiskv.kept)
        shape = ChatShape(self.model, self.prompts.token, body.n or 1)
        return self._ask(body, [prompt], shape, "messages")

    async def completion(self, body: CompletionBody) -> Response:
        """Go on from a text, or several; raises `ApiError`."""
        given = _several(body.prompt)
        self._check(body, len(given))
        for each in given:
            if isinstance(each, str):
                self._check_text(len(each), body, "prompt")
        prompts = await run_in_threadpool(self._prompts_of, given)
        shape = CompletionShape(self.model, self.prompts.token, body.n or 1)
        return self._ask(body, prompts, shape, "prompt")

    def watched(self, name: str) -> dict[str, Any]:
        """What a watched answer has attended to; this may wait for a turn of the engine; raises `ApiError`."""
        known = self._watched.get(name)
        if known is None:
            asking = f"ask with louiskv.watched=true; {MAX_WATCHED} are remembered"
            message = f"There is no watched answer {name[:MAX_NAME]!r}: {asking}."
            raise ApiError(404, message, param="id", code="answer_not_found")
        prompt, answer = known
        attended = self.engine.attended(answer) or answer.attended
        told: dict[str, Any] = {"id": name, "ended": answer.ended, "steps": [], "heat": None}
        if attended is not None and attended.since is not None:
            heat = heat_of(prompt.token_ids, attended, self.prompts.text)
            told |= {"steps": [round(share, 4) for share in attended.fired], "heat": heat.to_dict()}
        return told

    def _check(self, body: Common, num_prompts: int = 1) -> None:
        if body.model != self.model:
            message = f"The model '{body.model[:100]}' does not exist: this server has '{self.model}'."
            raise ApiError(404, message, param="model", code="model_not_found")
        if body.stream_options is not None and not body.stream:
            message = "'stream_options' is only allowed when 'stream' is true."
            raise ApiError(400, message, param="stream_options", code="invalid_value")
        wanted = num_prompts * (body.n or 1)
        if wanted > self.engine.queue:
            message = f"This server gives at most {self.engine.queue} answers to one request; yours asks for {wanted}."
            raise ApiError(400, message, param="prompt" if num_prompts > 1 else "n", code="invalid_value")
        _check_own(body.louiskv, self.method)

    def _prompts_of(self, given: Sequence[str | list[int]]) -> list[Prompt]:
        return [self.prompts.of_text(each) if isinstance(each, str) else Prompt(each) for each in given]

    def _ask(self, body: Common, prompts: Sequence[Prompt], shape: Shape, param: str) -> Reply:
        asked = []
        for prompt in prompts:
            self._check_length(len(prompt.token_ids), body.answer_tokens, param)
            asked += [(prompt, self._request(body, prompt, place)) for place in range(shape.n)]
        self.life.check()
        answers = Asked(self.engine, self.prompts, self.metrics, asked)
        watched = body.louiskv.watched
        if watched:
            self._remember(shape.id, prompts[0], answers.answers[0])
        done = self.life.begin(answers)
        if not body.stream:
            return Whole(answers, shape, done)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return Events(answers, shape, done, include_usage=include_usage, watched=watched)

    def _request(self, body: Common, prompt: Prompt, place: int) -> Request:
        own, tau = body.louiskv, _tau_of(body.louiskv, self.method)
        try:
            sampling: Sampling = body.sampling(place, body.answer_tokens)
        except SettingsError as error:
            raise as_api_error(error) from error
        return Request(prompt=prompt.token_ids, sampling=sampling, kept=own.kept, watched=own.watched, tau=tau)

    def _check_text(self, characters: int, body: Common, param: str) -> None:
        """Refuse a text that has too many tokens in any case, before it takes long to count them."""
        self._check_length(-(-characters // self.prompts.longest_token), body.answer_tokens, param, "at least ")

    def _check_length(self, length: int, wanted: int | None, param: str, about: str = "") -> None:
        most, limit = self.engine.max_length, self.limits.max_prompt
        if limit is not None and length > limit:
            message = f"This server takes prompts of {limit} tokens; yours has {about}{length}. Shorten it."
            raise too_long(message, param)
        answer = wanted or 1
        if length + answer > most:
            parts = f"{length} in the {param}, {answer} in the answer"
            raise too_long(
                f"This model's maximum context length is {most} tokens. However, you requested {about}"
                f"{length + answer} tokens ({parts}). Shorten the {param} or ask for less.",
                "max_tokens" if wanted and length < most else param,
            )

    def _remember(self, name: str, prompt: Prompt, answer: Answer) -> None:
        self._watched[name] = (prompt, answer)
        if len(self._watched) > MAX_WATCHED:
            self._watched.popitem(last=False)


def _several(given: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    """Each prompt of a request; raises `ApiError` if there is none."""
    if not given:
        raise ApiError(400, "Invalid value for 'prompt': it is empty.", param="prompt", code="invalid_value")
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]
    return given


def _check_own(own: Own, method: Method) -> None:
    """Refuse what would need another method than the one that runs; settings as they are may be said."""
    name, values = type(method).__name__, {"method": method.__module__.rpartition(".")[2], **method.values()}
    for field, value in (own.model_extra or {}).items():
        if field in values and values[field] == value:
            continue
        known = field in values or any(field in [each.name for each in kind.settings()] for kind in METHODS.values())
        runs = f"this server runs {name}({', '.join(f'{key}={text!r}' for key, text in method.values().items())})"
        reason = f"it is set for the whole server, and {runs}" if known else "there is no such setting"
        raise _wrong_own(field[:MAX_NAME], reason, "unsupported_value" if known else "unknown_parameter")


def _tau_of(own: Own, method: Method) -> float | None:
    """The tau that one sequence has for itself; none if it is the one that all have. Raises `ApiError`."""
    if own.tau is None or own.tau == method.values().get("tau"):
        return None
    try:
        method.for_sequence(own.tau)
    except SettingsError as error:
        raise _wrong_own("tau", str(error).rstrip("."), "invalid_value") from error
    return own.tau


def _wrong_own(field: str, reason: str, code: str) -> ApiError:
    param = f"louiskv.{field}"
    return ApiError(400, f"Invalid value for '{param}': {reason}.", param=param, code=code)
