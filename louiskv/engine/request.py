"""What is asked of the engine, and what it gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from louiskv.cache import LouisKVCache
from louiskv.errors import RequestError, SettingsError, check_count, check_range

MAX_LOGPROBS = 20
# Beyond this a penalty or a bias decides alone.
MAX_BIAS = 100.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of one answer are chosen, and when it ends.

    Attributes:
        max_tokens: Tokens of the answer at the most; None for as many as there is room for.
        temperature: By which logits are divided; 0 takes the most probable token.
        top_p: Choose among the most probable tokens that have this share together.
        top_k: Choose among so many; 0 for all.
        min_p: Choose among those that have this share of the most probable one's probability.
        seed: The same seed gives the same answer, whatever else the engine does; None takes any.
        presence_penalty: What is taken off the logit of a token that the answer has.
        frequency_penalty: What is taken off for each time that it has it.
        repetition_penalty: By which the logit of a token of prompt or answer is divided, or multiplied if below 0.
        logit_bias: What is added to the logits of tokens.
        stop: Texts that end the answer; they are no part of it.
        stop_token_ids: Tokens that end the answer, beside the model's own; their text is no part of it.
        ignore_eos: Whether the model's own end tokens end nothing.
        logprobs: How many of the most probable tokens are told at each step, with their logarithms and that of the one
            chosen; None for nothing at all.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.max_tokens is not None:
            check_count("max_tokens", self.max_tokens, 1)
        check_range("temperature", self.temperature, 0, 100)
        check_range("top_p", self.top_p, 0, 1)
        check_range("min_p", self.min_p, 0, 1)
        check_count("top_k", self.top_k, 0)
        for name in ("presence_penalty", "frequency_penalty"):
            check_range(name, getattr(self, name), -MAX_BIAS, MAX_BIAS)
        check_range("repetition_penalty", self.repetition_penalty, 0.01, MAX_BIAS)
        for token, bias in self.logit_bias.items():
            check_range(f"logit_bias[{token}]", bias, -MAX_BIAS, MAX_BIAS)
        if any(not text for text in self.stop):
            raise SettingsError(f"stop={self.stop} is not allowed: every answer holds an empty text. Leave it out.")
        if self.logprobs is not None:
            check_count("logprobs", self.logprobs, 0)
            check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)

    def check_tokens(self, vocabulary: int) -> None:
        """Raise `SettingsError` where a token is none of the model's."""
        for name, tokens in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            for token in tokens:
                if type(token) is not int or not 0 <= token < vocabulary:
                    raise SettingsError(f"{name} names token {token!r}: give whole numbers from 0 to {vocabulary - 1}.")


@dataclass(frozen=True)
class Conversation:
    """A sequence that can be gone on with.

    Attributes:
        token_ids: The tokens that the cache holds.
        cache: Holds them, as one sequence.
    """

    token_ids: tuple[int, ...]
    cache: LouisKVCache

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes on the host and on the device."""
        tiers = [layer.state.tiers() for layer in self.cache.managed]
        return sum(each.host.bytes for each in tiers), sum(each.resident.bytes + each.index.bytes for each in tiers)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to be gone on with.

    Attributes:
        prompt: Token ids of all that came before the answer, earlier turns included.
        sampling: How to answer.
        conversation: An earlier turn to go on from, as far as its tokens are those of the prompt; None lets the engine
            look whether it has kept one.
        hand_back: Whether the conversation is the caller's afterwards (`Answer.conversation`), and not kept.
        kept: Whether a kept conversation may be gone on from, and this one may be kept.
        watched: Whether it is counted at each step what the answer attends to, which costs time; see `Engine.attended`
            and `Answer.attended`.
        tau: Under which this answer retrieves; None for the method's. Methods that compare nothing with it have none.
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    conversation: Conversation | None = None
    hand_back: bool = False
    kept: bool = True
    watched: bool = False
    tau: float | None = None

    def check(self, vocabulary: int, max_length: int) -> None:
        """Raise `RequestError` or `SettingsError` if it can never be answered."""
        if not self.prompt:
            raise RequestError("The prompt is empty: give at least one token.")
        least, most = min(self.prompt), max(self.prompt)
        if least < 0 or most >= vocabulary:
            wrong = least if least < 0 else most
            raise RequestError(f"The prompt has token {wrong}, but the model knows 0 to {vocabulary - 1}.")
        self.sampling.check_tokens(vocabulary)
        wanted = self.sampling.max_tokens or 1
        if len(self.prompt) + wanted > max_length:
            raise RequestError(
                f"{len(self.prompt)} tokens of prompt and {wanted} of answer are more than the {max_length} tokens "
                "that this engine takes (max_length). Shorten the prompt or lower max_tokens."
            )

    def longest(self, max_length: int) -> int:
        """Tokens of prompt and answer at the most."""
        wanted = self.sampling.max_tokens
        return max_length if wanted is None else len(self.prompt) + wanted


@dataclass(frozen=True)
class Usage:
    """What an answer took.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Those of them that were there from an earlier turn.
        completion_tokens: Tokens of the answer.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Logprob:
    """What the model said of one step, before temperature and all else.

    Attributes:
        token_id: The token chosen.
        logprob: The logarithm of its probability.
        best: The most probable tokens and their logarithms, as many as were asked for.
    """

    token_id: int
    logprob: float
    best: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: What may be shown; empty while characters or what may become a stop text are not complete.
        token_ids: The tokens that came with it.
        finish_reason: "stop", "length", "cancelled" or "error" with the last piece, else None.
        logprobs: Of each token, if asked for.
        fired: Share of the KV heads of all layers that retrieved at the step that gave the tokens.
        usage: With the last piece.
        error: What has gone wrong, with "error".
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    logprobs: tuple[Logprob, ...] = ()
    fired: float = 0.0
    usage: Usage | None = None
    error: BaseException | None = None
