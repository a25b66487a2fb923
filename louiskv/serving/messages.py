"""The messages of a chat, as a chat template takes them."""

from typing import Any

from louiskv.serving.errors import ApiError

# The newer name of OpenAI's; templates know the older one.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
Message = dict[str, str]


def read_messages(given: list[dict[str, Any]]) -> list[Message]:
    """Role and text of each message.

    Raises:
        ApiError: 400; one is of a kind that a language model cannot read.
    """
    return [_message(message, f"messages[{place}]") for place, message in enumerate(given)]


def _message(given: dict[str, Any], where: str) -> Message:
    role = given.get("role")
    if not isinstance(role, str):
        raise _wrong(f"{where}.role", "give a role", "invalid_type")
    if role not in ROLES:
        known = role in ("tool", "function")
        reason = "this server does not support tools" if known else f"the roles are {', '.join(ROLES)}"
        raise _wrong(f"{where}.role", reason, "unsupported_value" if known else "invalid_value")
    for name in ("audio", "function_call", "tool_calls"):
        if given.get(name):
            raise _wrong(f"{where}.{name}", "this server does not support it", "unsupported_parameter")
    return {"role": ROLES[role], "content": _text(given.get("content"), f"{where}.content")}


def _text(content: Any, where: str) -> str:
    """The text of one message, given whole or in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(where, "give a text, or a list of parts of type text", "invalid_type")
    return "".join(_part(part, f"{where}[{place}]") for place, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise _wrong(where, "this server takes parts of type text only", "unsupported_value")
    if not isinstance(part.get("text"), str):
        raise _wrong(f"{where}.text", "give a text", "invalid_type")
    return str(part["text"])


def _wrong(param: str, reason: str, code: str) -> ApiError:
    return ApiError(400, f"Invalid value for '{param}': {reason}.", param=param, code=code)
