"""Commands from functions: the classes of a function's arguments declare the options (`ciml.options`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, fields, is_dataclass
from functools import partial
from inspect import cleandoc, signature
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import click

from ciml.cli.options import DISCOVERED_KINDS, ENGINE_CALLBACKS, HOME, KINDS, Duration, ask
from ciml.options import DECLARED

T = TypeVar("T")
#: A field and its text, in a docstring without indentation.
_DOCUMENTED = re.compile(r"^  (\w+): (.*(?:\n    .*)*)", re.MULTILINE)


def make_command(name: str, **settings: Any) -> Callable[[Callable[..., int | None]], click.Command]:
    """Return a decorator that makes a command of a function.

    The annotation of each of its arguments is a frozen data class whose fields declare the command's parameters. It is
    evaluated, so the module imports these classes at run time. The function's text is the help, its result the exit
    code.

    Args:
      name: of the command.
      settings: of `click.Command`.
    """

    def decorate(function: Callable[..., int | None]) -> click.Command:
        classes = {name: cls for name, cls in get_type_hints(function).items() if name != "return"}
        return command_of(name, function, classes, help=function.__doc__, **settings)

    return decorate


def command_of(
    name: str, function: Callable[..., int | None], classes: Mapping[str, type[Any]], **settings: Any
) -> click.Command:
    """Return the command that calls a function with objects of data classes, whose fields declare its parameters.

    Args:
      name: of the command.
      function: its result is the exit code.
      classes: the data class of each argument of the function.
      settings: of `click.Command`.
    """

    def callback(**values: Any) -> int | None:
        return function(**{argument: _make_options(cls, values) for argument, cls in classes.items()})

    return click.Command(name, params=_parameters(classes.values()), callback=callback, **settings)


def call_with_options(function: Callable[..., T], options: object, **others: Any) -> T:
    """Call a function, or make an object of a data class, with the options that have the names of its arguments.

    Args:
      function: an argument that is not an option and not in ``others`` keeps its default.
      options: the options.
      others: values of further arguments; they win over options.
    """
    names = signature(function).parameters
    copied = {name: value for name, value in vars(options).items() if name in names}
    return function(**{**copied, **others})


def _make_options(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Return the object of a data class for the values of a command's parameters; None stands for the default."""
    names = (option.name for option in _declared(cls))
    return cls(**{name: values[name] for name in names if values[name] is not None})


def _parameters(classes: Iterable[type[Any]]) -> list[click.Parameter]:
    """Return the arguments and options of data classes: of each class the required, its own and the inherited ones.

    If the default of an option depends on local engines, ``--home`` is added; the command does not receive its value.
    """
    params: list[click.Parameter] = []
    for cls in classes:
        inherited = {option.name for base in cls.__mro__[1:] if is_dataclass(base) for option in fields(base)}
        texts = _documented(cls)
        of_class = [_parameter(option, texts.get(option.name, "")) for option in _declared(cls)]
        params += sorted(of_class, key=lambda param: (not param.required, param.name in inherited))
    if any(param.callback in ENGINE_CALLBACKS for param in params) and all(param.name != "home" for param in params):
        params.append(click.Option(["--home"], expose_value=False, **HOME))
    return params


def _declared(cls: type[Any]) -> list[Field[Any]]:
    return [option for option in fields(cls) if DECLARED in option.metadata]


def _parameter(option: Field[Any], help_text: str) -> click.Parameter:
    """Return the click parameter of a field."""
    declared = dict(option.metadata[DECLARED])
    kind = declared.pop("kind", "")
    settings = {**_kind_settings(kind), **declared}
    settings["required"] = settings.get("required", False) and kind not in DISCOVERED_KINDS
    default = option.default
    if isinstance(settings.get("type"), Duration) and isinstance(default, (int, float)):
        settings["default"] = Duration.text(default)
    elif default != "" and isinstance(default, (str, int, float, Path)):  # help would show "" as a default
        settings["default"] = default
    if settings.pop("argument", False):
        return click.Argument([option.name], **settings)
    if question := settings.pop("ask", ""):
        settings["callback"] = partial(_ask_if_missing, question)
    if help_text:
        settings["help"] = help_text
    if "is_flag" in settings:
        settings["default"] = default  # also None, for a flag that is neither on nor off
    if "flag_value" in settings:
        settings["is_flag"] = False  # its value may be left out, but it takes one
    name = option.name.replace("_", "-")
    name = name[:-1] if settings.get("multiple") and name.endswith("s") else name
    flags = settings.pop("flags", f"--{name}").split()
    make: type[click.Option] = settings.pop("cls", click.Option)
    return make([*flags, option.name], show_envvar="envvar" in settings, **settings)


def _kind_settings(kind: Any) -> Mapping[str, Any]:
    """Return the click arguments of a kind: a key of `KINDS`, click arguments, a type, or a callback."""
    if isinstance(kind, str):
        return KINDS[kind]
    if isinstance(kind, Mapping):
        return kind
    if isinstance(kind, (type, tuple, click.ParamType)):
        return {"type": kind}
    return {"callback": kind}


def _ask_if_missing(question: str, ctx: click.Context, param: click.Option, value: Any) -> Any:
    if value or ctx.resilient_parsing:
        return value
    answer = ask(param.opts[0], question)
    return (answer,) if param.multiple else answer


def _documented(cls: type[Any]) -> Mapping[str, str]:
    """Return the texts in ``Attributes`` of a class, by field; a field without one has the text of a base."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for field_name, text in _DOCUMENTED.findall(cleandoc(base.__doc__ or "")):
            texts[field_name] = " ".join(text.split()).replace(" [default", "  [default")
    return texts


class DefaultGroup(click.Group):
    """A group that runs its ``default`` command when none is named, and lists the options of that command."""

    def __init__(self, *args: Any, default: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[COMMAND]", "[OPTIONS]"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        command = self.commands[self.default]
        with click.Context(command, info_name=self.default, parent=ctx) as inner:
            command.format_options(inner, formatter)
        self.format_commands(ctx, formatter)
