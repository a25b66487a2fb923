"""A conversation as ids: what the cache holds, and what comes next."""

from collections.abc import Callable
from dataclasses import dataclass, field

from louiskv.cli.answering import Answer, Speaker
from louiskv.cli.options import Sampling
from louiskv.cli.prompts import check_fits, room
from louiskv.errors import LouisKVError
from louiskv.prompts import Request, encode

# Stands for an answer while the chat template is asked for the text around it.
ANSWER = "\N{WHITE SQUARE}answer\N{WHITE SQUARE}"


@dataclass
class Conversation:
    """Turns on one cache. They go on from the ids that were generated; no answer is ever turned back into ids.

    Attributes:
        talk: The model and its cache.
        document: Text before the first question.
        raw: Whether turns follow each other without the chat template.
        ids: Ids of all turns so far.
    """

    talk: Speaker
    document: str | None = None
    raw: bool = False
    ids: list[int] = field(default_factory=list)

    def ask(self, text: str, sampling: Sampling, write: Callable[[str], None]) -> Answer:
        """Ask and answer; a question that fails, or is stopped before its answer begins, is as if never asked.

        Raises:
            SettingsError: There are not enough positions left.
        """
        ids = [*self.ids, *self._next_turn(text)]
        limit = room(self.talk.model.config, sampling.max_new_tokens)
        check_fits(len(ids), limit, "/reset forgets what was said so far; a lower --max-new-tokens leaves more room.")
        held = self.talk.kv_cache.get_seq_length()
        try:
            answer = self.talk.answer(ids, sampling, write)
        except LouisKVError:
            self._rewind(held)
            raise
        if answer.tokens:
            self.ids = [*ids, *self._without_end(answer.tokens)]
        else:
            self._rewind(held)
        return answer

    def reset(self) -> None:
        """Forget everything that was said."""
        self.ids = []
        self.talk.kv_cache.reset()

    def _next_turn(self, text: str) -> list[int]:
        """Ids that follow what was said: the end of the last answer, the question, the start of the next answer."""
        tokenizer = self.talk.tokenizer
        if not self.ids:
            first = Request(text, raw=self.raw) if self.document is None else Request(self.document, text, self.raw)
            return encode(tokenizer, first)
        follows = f"\n{text}\n"
        if not self.raw and tokenizer.chat_template is not None:
            turns = [("user", "-"), ("assistant", ANSWER), ("user", text)]
            messages = [{"role": role, "content": content} for role, content in turns]
            rendered = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
            follows = rendered.partition(ANSWER)[2]
        return list(tokenizer(follows, add_special_tokens=False)["input_ids"])

    def _without_end(self, tokens: list[int]) -> list[int]:
        """An answer without the token that ended it: the cache never got that, and the template brings its own."""
        config = self.talk.model.generation_config
        ends = None if config is None else config.eos_token_id
        return tokens[:-1] if tokens[-1] in (ends if isinstance(ends, list) else [ends]) else tokens

    def _rewind(self, held: int) -> None:
        """Take the cache back to its first `held` tokens, of which some layers may hold more than others."""
        kv_cache = self.talk.kv_cache
        if held == 0 or len(kv_cache.managed) < len(kv_cache.layers):
            # Sliding layers cannot go back; the next turn reads everything anew.
            kv_cache.reset()
            return
        for layer in kv_cache.managed:
            layer.crop(held - layer.get_seq_length())
