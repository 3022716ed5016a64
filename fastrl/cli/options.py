"""The options of a command, from the fields of dataclasses: their help, and errors that name the option."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fastrl.agents.config import InputError, meanings
from fastrl.agents.hyperparameters.needs import Need

T = TypeVar("T")
YES, NO, NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")
ENVIRONMENT = re.compile(r".*-v\d+|.*[:/].*")
NEGATIVE = re.compile(r"-(\d|\.\d|inf|nan)")
WANTED = {int: "an integer", float: "a number", str: "a text", Path: "a path"}
METAVAR = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
# What others call the same settings.
SYNONYMS = {
    "discount": "gamma",
    "ent-coef": "entropy-coef",
    "env-id": "env",
    "env-wrapper": "wrapper",
    "lr": "learning-rate",
    "n-envs": "num-envs",
    "n-epochs": "epochs",
    "n-timesteps": "total-steps",
    "net-arch": "hidden",
    "steps": "total-steps",
    "timesteps": "total-steps",
    "total-timesteps": "total-steps",
    "vf-coef": "value-coef",
}


def parse(
    cls: type[T],
    args: list[str],
    prog: str,
    config_class: type[Any] | None = None,
    *,
    stray: str = "",
    defaults: Mapping[str, Any] | None = None,
    others: bool = False,
) -> tuple[T, dict[str, Any]]:
    """The options of a command, and those of its hyperparameters that were given.

    A field of `cls` without a default is an argument without a name.  `stray`: the option that an argument too many may
    have been meant for.  `defaults`: others than those of `cls`.  `others`: options of neither are let through.  Raises
    InputError, and after `--help` SystemExit.
    """
    hints = typing.get_type_hints(cls)
    required = [f for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    usage = [f.name.upper() if _item(hints[f.name]) is None else f"[{f.name.upper()} ...]" for f in required]
    parser = argparse.ArgumentParser(
        usage=" ".join([prog, *usage, "[options]"]),
        description=cls.__doc__,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    options = _add(parser, cls)
    if config_class is not None:
        options |= _add(parser.add_argument_group("hyperparameters"), config_class)
    if {"-h", "--help"} & set(args):  # argparse would not notice that nobody reads it
        print(parser.format_help(), end="")
        raise SystemExit(0)
    try:
        parsed, unknown = parser.parse_known_args(_plain(args, options))
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").rpartition("/")[2]
        what = "needs a value" if error.message.startswith("expected") else error.message
        raise InputError(f"{name} {what}") from None
    if unknown and not others:
        what = _unknown(unknown[0], options, stray)
        raise InputError(what if what.endswith("?") else f"{what}; {prog} --help lists the options")
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(parsed).items()}
    own = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in given:
            own[field.name] = given.pop(field.name)
        if field.default is dataclasses.MISSING and own[field.name] is None:
            raise InputError(f"{field.name.upper()} is missing: {prog} {field.name.upper()} ...")
    return cls(**{**(defaults or {}), **own}), given


def as_options(error: InputError, config_class: type[Any]) -> InputError:
    """The error of a hyperparameter as one of its option; what is behind a colon is prose, or a path."""
    start, message = f"{config_class.__name__}: ", str(error)
    if not message.startswith(start):
        return error
    names = "|".join(field.name for field in dataclasses.fields(config_class))
    message, colon, why = message[len(start) :].partition(": ")
    return InputError(re.sub(rf"\b({names})\b", lambda m: option(m[0]), message) + colon + why)


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_flags(need: Need, config: Any) -> str:
    """What a setting needs to have an effect in `config`: ``without --prioritized``, ``with --network nature``."""
    values = [getattr(config, need.setting)] if need.but else need.values
    shown = "" if values[0] is True else " " + " or ".join("none" if value is None else str(value) for value in values)
    return f"{'with' if need.but else 'without'} {option(need.setting)}{shown}"


def value_of(flag: str, args: list[str]) -> str | None:
    """The value that follows `flag`, or an = behind it; the last one counts."""
    pairs = zip(args, [*args[1:], None], strict=True)
    values = [arg.partition("=")[2] or following for arg, following in pairs if arg.partition("=")[0] == flag]
    return values[-1] if values and values[-1] and not values[-1].startswith("-") else None


def without(args: list[str], names: tuple[str, ...]) -> list[str]:
    """The arguments without these options, each of which has one value."""
    left, rest = [], list(args)
    while rest:
        name, equals, _ = (arg := rest.pop(0)).partition("=")
        if arg.startswith("-o") and "-o" in names:  # -oFILE, too
            del rest[: arg == "-o"]
        elif name in names:
            del rest[: not equals]
        else:
            left.append(arg)
    return left


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like this one, if any is."""
    return next(iter(difflib.get_close_matches(word, list(known), 1)), None)


def _add(group: Any, cls: type[Any]) -> dict[str, Any]:
    """An argument for each field; returns the types by option."""
    hints, help_, options = typing.get_type_hints(cls), meanings(cls), {}
    for field in dataclasses.fields(cls):
        hint, text = hints[field.name], " ".join(help_.get(field.name, "").split())
        many = _item(hint)
        settings: dict[str, Any] = {"type": _converter(many or hint), "metavar": _metavar(hint)}
        if field.default is dataclasses.MISSING:
            settings["metavar"] = field.name.upper()
            group.add_argument(field.name, nargs="?" if many is None else "*", default=None, help=text, **settings)
            continue
        if field.default not in (None, ()):
            text += f" (default: {_shown(field.default)})"
        options[option(field.name)] = hint
        names = ["-o", "--out"] if field.name == "out" else [option(field.name)]
        if hint is bool:
            settings = {"action": argparse.BooleanOptionalAction}
        elif many is not None:
            settings |= {"nargs": "+", "action": "store" if many is int else "extend"}
        group.add_argument(*names, help=text.replace("%", "%%"), **settings)
    return options


def _plain(args: list[str], options: dict[str, Any]) -> list[str]:
    """The arguments as argparse reads them: --a_b as --a-b, --a True as --a, --a -1e-3 as --a=-1e-3, 64,64 as 64 64."""
    plain, rest = [], list(args)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        hint = options.get(name)
        if hint is bool:
            if not equals and rest and rest[0].lower() in YES + NO:
                equals, value = "=", rest.pop(0)
            elif not equals and rest and not rest[0].startswith("-") and not ENVIRONMENT.fullmatch(rest[0]):
                equals, value = "=", rest[0]
            if equals and value.lower() not in YES + NO:
                raise InputError(f"{name} must be true or false, got {value!r}; it is {name} or --no-{name[2:]}")
            plain.append(f"--no-{name[2:]}" if value.lower() in NO else name)
        elif hint is not None and _item(hint) is int:
            values = [value] if equals else []
            while rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            plain += [name, *(v for part in values for v in re.split(r"[,\s]+", part.strip("[]() ,")) if v)]
        elif hint is not None and not equals and rest and NEGATIVE.match(rest[0]):
            plain.append(f"{name}={rest.pop(0)}")
        else:
            plain.append(f"{name}{equals}{value}")
    return plain


def _unknown(arg: str, options: dict[str, Any], stray: str) -> str:
    name = arg.partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {arg!r}" + (f"; did you mean {stray} {arg}?" if stray else "")
    word = name.lstrip("-").replace("_", "-").lower()
    known = {other[2:] for other in options}
    meant = SYNONYMS.get(word) if SYNONYMS.get(word) in known else None
    meant = meant or did_you_mean(word, known) or next((k for k in sorted(known) if k.startswith(word)), None)
    return f"unknown option {name}" + (f"; did you mean --{meant}?" if meant else "")


def _item(hint: Any) -> Any:
    """The type of a tuple's items; None: it is no tuple."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types of a union, None among them; of another type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _converter(hint: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        for choice in _choices(hint):
            try:
                return _value(text, choice)
            except (ValueError, OverflowError):
                pass
        raise argparse.ArgumentTypeError(f"must be {_wanted(hint)}, got {text!r}")

    return convert


def _value(text: str, hint: Any) -> Any:
    """Raises ValueError or OverflowError."""
    if hint is type(None) or typing.get_origin(hint) is typing.Literal:
        known = dict.fromkeys(NONE) if hint is type(None) else {word: word for word in typing.get_args(hint)}
        if text.lower() not in known:
            raise ValueError
        return known[text.lower()]
    if hint is int and not re.fullmatch(r"[-+]?[\d_]+", text):
        number = float(text)  # 1e5
        if not number.is_integer():
            raise ValueError
        return int(number)
    return hint(text)


def _wanted(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(typing.get_args(hint))
    return " or ".join(
        WANTED.get(choice) or ("none" if choice is type(None) else _wanted(choice)) for choice in _choices(hint)
    )


def _metavar(hint: Any) -> str:
    one = next(choice for choice in _choices(hint) if choice is not type(None))
    if typing.get_origin(one) is typing.Literal:
        return f"{{{','.join(typing.get_args(one))}}}"
    return METAVAR.get(_item(hint) or one, "TEXT")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
