"""Who is compared: methods with their settings, under the names that they have in tables."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from louiskv.errors import SettingsError
from louiskv.methods import METHODS
from louiskv.methods.base import Method


@dataclass(frozen=True)
class Contestant:
    """A method under the name that it has in tables.

    Attributes:
        name: That name.
        method: The method.
        budget: Its budget, None if it has none.
        group: The comparison that it belongs to; None for the grid of all methods.
        family: What it shares with others of the group.
    """

    name: str
    method: Method
    budget: int | None = None
    group: str | None = None
    family: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides over what it does, and where it stands."""
        return {
            "method": self.name,
            "budget": self.budget,
            "class": type(self.method).__name__,
            "settings": plain(self.method),
            "group": self.group,
            "family": self.family,
        }


def plain(method: Method) -> dict[str, Any]:
    """Settings as plain data, what was measured on the model too; parts are told by their names and settings."""
    simple = (int, float, str, bool, type(None))
    values = {each.name: getattr(method, each.name) for each in fields(method)}
    return {name: value if isinstance(value, simple) else repr(value) for name, value in values.items()}


def contestants(
    names: Iterable[str], budgets: Iterable[int], settings: Mapping[str, Any] | None = None
) -> list[Contestant]:
    """Methods by name at each budget; those without one stand once.

    Args:
        names: Of METHODS.
        budgets: Budgets.
        settings: Settings in place of the defaults; each method takes those that it has.

    Raises:
        SettingsError: There is no such method, none of them has such a setting, or a budget is too small for one.
    """
    found: dict[Contestant, None] = {}
    unused = dict(settings or {})
    for name in names:
        if name not in METHODS:
            raise SettingsError(f"There is no method {name!r}. The methods are: {', '.join(METHODS)}.")
        own = {each.name for each in METHODS[name].settings()}
        given = {key: value for key, value in (settings or {}).items() if key in own}
        unused = {key: value for key, value in unused.items() if key not in own}
        for budget in budgets:
            default = METHODS[name]()
            method = default.at_budget(budget)
            # What is given goes before what the budget makes of a default.
            found[Contestant(name, replace(method, **given), None if method is default else budget)] = None
    if unused:
        named = ", ".join(dict.fromkeys(each.name for each in found))
        raise SettingsError(f"None of the methods {named} has a setting {', '.join(unused)}.")
    return list(found)


def named(names: Iterable[str], budget: int) -> list[Contestant]:
    """Methods by name at a budget, some with settings of their own: `louiskv:tau=0.7,window=128`.

    Raises:
        SettingsError: As `contestants`; or a setting is no number.
    """
    found = []
    for name in dict.fromkeys(names):
        kind, _, given = name.partition(":")
        parts = [each.partition("=") for each in given.split(",") if each]
        own = {setting: _value(value, f"--method {name}") for setting, _, value in parts}
        (one,) = contestants([kind], [budget], own)
        found.append(replace(one, name=name))
    return found


def _value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{where}: {text!r} is no number; write a setting as name=number.") from error
