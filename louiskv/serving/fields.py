"""The fields of a request: read, checked, and named where they are wrong."""

from typing import Annotated, Any, TypeVar, get_type_hints

from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, from_json

from louiskv.engine import Sampling
from louiskv.serving.errors import ApiError

# What OpenAI's own API knows.
KNOWN = {*get_type_hints(ChatParams), *get_type_hints(CompletionParams)}
# What says nothing about the answer, and is not looked at.
IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
}
# Values by which a field that is not supported asks for nothing.
IDLE: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
MAX_STOP_LENGTH = 1000
# Characters of a name that a client made up, in what it is told.
MAX_NAME = 100
INT64 = 2**63

StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Body = TypeVar("Body", bound="Common")


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(strict=True)
    include_usage: bool = False
    include_obfuscation: bool | None = None


class Own(BaseModel):
    """What this server knows and OpenAI's does not; settings of the method may stand here as they are."""

    model_config = ConfigDict(strict=True, extra="allow")
    # Whether to count what the answer attends to, for /louiskv/v1/answers.
    watched: bool = False
    # Whether to go on from a kept conversation, and to keep this one.
    kept: bool = True
    # Under which the answer retrieves, instead of the method's tau.
    tau: Number | None = None


class Common(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(strict=True)
    model: str
    n: int | None = Field(1, ge=1, le=128)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, lt=INT64)
    temperature: Number | None = Field(1.0, ge=0, le=2)
    top_p: Number | None = Field(1.0, ge=0, le=1)
    presence_penalty: Number | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: Number | None = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: list[StopText] | None = Field(None, max_length=4, description="One text, or up to four.")
    top_k: int | None = Field(0, ge=0, lt=INT64)
    min_p: Number | None = Field(0.0, ge=0, le=1)
    repetition_penalty: Number | None = Field(1.0, ge=0.01, le=100)
    stop_token_ids: list[int] | None = Field(None, max_length=64)
    ignore_eos: bool | None = False
    louiskv: Own = Own()

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("logit_bias", mode="after")
    @classmethod
    def _tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token in value or ():
            if not token.isdecimal() or len(token) > 10:
                raise ValueError(f"{token[:MAX_NAME]!r} is not the id of a token")
        return value

    @property
    def answer_tokens(self) -> int | None:
        """Tokens of the answer at the most."""
        return self.max_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many logarithms of probabilities are told at each step."""
        raise NotImplementedError

    def sampling(self, place: int, max_tokens: int | None) -> Sampling:
        """How to choose the tokens of one of the `n` answers; raises `SettingsError`."""
        temperature = _or(self.temperature, 1.0)
        return Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=_or(self.top_p, 1.0),
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else self.seed + place,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=self.top_logprobs_wanted,
        )


class ChatBody(Common):
    """A request to /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, lt=INT64)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def answer_tokens(self) -> int | None:
        """Tokens of the answer at the most; the newer name goes before the older one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        """None without `logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Common):
    """A request to /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(16, ge=1, lt=INT64)
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def answer_tokens(self) -> int | None:
        """Tokens of the answer at the most: 16 unless said, as with OpenAI."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        """As asked for."""
        return self.logprobs


def read(raw: bytes, kind: type[Body]) -> Body:
    """The fields of a body.

    Raises:
        ApiError: 400; it is no JSON object, or a field is not known, not supported, or wrong.
    """
    try:
        given = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(given, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    for name, value in given.items():
        if name not in kind.model_fields and value is not None:
            _check_foreign(name, value, kind)
    known = {name: value for name, value in given.items() if name in kind.model_fields}
    if known.get("louiskv", {}) is None:
        del known["louiskv"]
    try:
        body = kind.model_validate(known)
    except ValidationError as error:
        raise _named(error.errors(include_url=False, include_context=False)[0]) from error
    if "top_logprobs" in given and given["top_logprobs"] is not None and not given.get("logprobs"):
        raise ApiError(400, "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    return body


def _check_foreign(name: str, value: Any, kind: type[Body]) -> None:
    """Refuse a field that is not of this kind of request, unless it asks for nothing."""
    if name in IGNORED or any(value == idle and type(value) is type(idle) for idle in IDLE.get(name, ())):
        return
    if name in KNOWN:
        owner = "/v1/completions" if kind is ChatBody and name in get_type_hints(CompletionParams) else None
        where = f"it belongs to {owner}" if owner else "this server does not support it"
        message = f"'{name}' cannot be used: {where}. Leave it out."
        raise ApiError(400, message, param=name, code="unsupported_parameter")
    name = name[:MAX_NAME]
    raise ApiError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def _named(error: ErrorDetails) -> ApiError:
    """The first thing that is wrong, with the field's name as OpenAI writes it: messages[0].content."""
    # Of a field of several kinds the kind stands behind its name.
    path = error["loc"][:1] if error["loc"][0] == "prompt" else error["loc"]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:MAX_NAME]}" for part in path).removeprefix(".")
    if error["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    code = "invalid_type" if error["type"].endswith("_type") else "invalid_value"
    if error["loc"][0] == "prompt":
        reason = "give a text, several texts, token ids, or several lists of token ids"
    else:
        reason = error["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
    return ApiError(400, f"Invalid value for '{param}': {reason}.", param=param, code=code)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
