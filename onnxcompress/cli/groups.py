"""Options that go together: one parameter of a command, an option each on the command line."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, signature
from typing import Any, TypeVar

R = TypeVar("R")


def ungrouped(command: Callable[..., R]) -> Callable[..., R]:
    """A command with an option for each field of those of its parameters that are dataclasses."""
    own = signature(command)

    @functools.wraps(command)
    def run(**given: Any) -> R:
        return command(
            **{name: _gathered(name, each.annotation, given) for name, each in own.parameters.items()}
        )

    options = [option for each in own.parameters.values() for option in _options(each)]
    run.__signature__ = own.replace(parameters=options)  # type: ignore[attr-defined]
    return run


def _options(parameter: Parameter) -> Iterator[Parameter]:
    if not is_dataclass(parameter.annotation):
        yield parameter.replace(kind=Parameter.KEYWORD_ONLY)
        return
    for field in fields(parameter.annotation):
        default = Parameter.empty if field.default is MISSING else field.default
        option = Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
        yield from _options(option)


def _gathered(name: str, kind: Any, given: Mapping[str, Any]) -> Any:
    """The value of a parameter: as it was given, or of its fields."""
    if not is_dataclass(kind):
        return given[name]
    values = {field.name: _gathered(field.name, field.type, given) for field in fields(kind)}
    return kind(**values)  # type: ignore[operator]  # a class, not one of its instances
