"""Write docs/reference/ from the code: configuration, settings, messages, API, commands and exit codes.

python docs/reference.py            writes the pages; a test holds that they are current
"""

import argparse
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from monitor_service import __main__ as monitor_program
from monitor_service.app import create_app
from monitor_service.exposition import PREFIX as PREFIX_OF_METRICS
from monitor_service.metrics import Meters
from monitor_service.run_series import FAMILIES, Family
from monitor_service.scrape import FLEET
from monitor_service.settings import PREFIX, ClientSettings, Settings
from shared import commands, events, exchange
from trainer import __main__ as trainer_program
from trainer import errors
from trainer.config import Config

FOLDER = Path(__file__).parent / "reference"
_METRIC_HEAD = ("| name | type | labels | meaning |", "|---|---|---|---|")
_MADE = "*Written by `python docs/reference.py` from the code; do not edit.*"


def pages() -> dict[str, str]:
    """Each page's text by its file name."""
    made = {
        "config.md": _config(),
        "settings.md": _settings(),
        "messages.md": _messages(),
        "api.md": _api(),
        "commands.md": _commands(),
        "metrics.md": _metrics(),
    }
    return {name: "\n".join(lines).rstrip() + "\n" for name, lines in made.items()}


def _config() -> Iterator[str]:
    yield from _head(
        "The trainer's configuration", "A TOML file; every key has a default, so name what you change."
    )
    yield from _sections(Config, "")


def _sections(section: type[BaseModel], path: str) -> Iterator[str]:
    own = {n: f for n, f in section.model_fields.items() if not _is_section(f)}
    if own:
        yield from (f"## [{path}]", "", _first_line(section), "", *_table("key", own), "")
    for name, field in section.model_fields.items():
        if _is_section(field):
            assert isinstance(field.annotation, type)
            yield from _sections(field.annotation, f"{path}.{name}".removeprefix("."))


def _settings() -> Iterator[str]:
    about = f"Environment variables of `python -m monitor_service`; each may be a file, `{PREFIX}…_FILE`."
    yield from _head("The monitor's settings", about)
    for settings, title in (
        (Settings, "serve, migrate, compact, token"),
        (ClientSettings, "status, watch and the like"),
    ):
        named = {f"{PREFIX}{name.upper()}": field for name, field in settings.model_fields.items()}
        yield from (f"## {title}", "", *_table("variable", named), "")


def _messages() -> Iterator[str]:
    yield from _head(
        "What trainer and monitor say to each other", "How they are used: [protocol](../protocol.md)."
    )
    for module, base in ((exchange, BaseModel), (events, events.Event), (commands, BaseModel)):
        for name, model in inspect.getmembers(module, inspect.isclass):
            if issubclass(model, base) and model.__module__ == module.__name__:
                yield from (f"## {name}", "", inspect.getdoc(model) or "", "")
                yield from (*_table("field", model.model_fields), "")


def _api() -> Iterator[str]:
    schema = create_app(Settings()).openapi()
    yield from _head(
        "The monitor's API", "The machine's form of it, with examples, is served at `/openapi.json`."
    )
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield from (f"## {method.upper()} {path}", "")
            yield from (operation.get("description") or operation.get("summary", ""), "")
            parameters = operation.get("parameters", [])
            if parameters:
                yield from ("| parameter | in | type | meaning |", "|---|---|---|---|")
                yield from map(_parameter, parameters)
                yield ""
            yield from (
                "Answers: " + ", ".join(_answer(*one) for one in operation["responses"].items()) + ".",
                "",
            )


def _parameter(one: Mapping[str, Any]) -> str:
    kind = one.get("schema", {})
    types = "/".join(_type_in_schema(part) for part in kind.get("anyOf", [kind]))
    must = " (required)" if one.get("required") else ""
    return f"| `{one['name']}`{must} | {one['in']} | {types} | {_cell(one.get('description', ''))} |"


def _type_in_schema(part: Mapping[str, Any]) -> str:
    if "enum" in part:
        return "/".join(map(str, part["enum"]))
    return str(part.get("type", part.get("$ref", "").rpartition("/")[2]))


def _answer(code: str, one: Mapping[str, Any]) -> str:
    return f"{code} ({one['description'].rstrip('.').lower()})" if one.get("description") else code


def _metrics() -> Iterator[str]:
    yield from _head("Metrics", "What `/metrics` tells. What to watch and when: [runbook](../runbook.md).")
    yield from ("## Of each run", "")
    yield "Labels `project` and `run` besides those named; a run leaves 15 minutes after its end. Told by one"
    yield from ("monitor of those that share a database, as are those of the fleet.", "")
    yield from (*_METRIC_HEAD, *map(_family, FAMILIES), "")
    yield from ("## Of the fleet", "", *_METRIC_HEAD, *map(_family, FLEET.values()), "")
    yield from ("## Of the monitor", "", *_METRIC_HEAD)
    for collector in Meters(CollectorRegistry()).registry._collector_to_names:
        for told in collector.describe():
            ending = "_total" if told.type == "counter" else ""
            labels = ", ".join(getattr(collector, "_labelnames", ()))
            yield f"| `{told.name}{ending}` | {told.type} | {labels} | {told.documentation} |"


def _family(family: Family) -> str:
    labels = ", ".join(family.labels)
    return f"| `{PREFIX_OF_METRICS}{family.name}` | {family.kind} | {labels} | {family.what} |"


def _commands() -> Iterator[str]:
    yield from _head(
        "Commands and exit codes", "Each takes `--json`. What the codes ask of you: [runbook](../runbook.md)."
    )
    for program in (trainer_program, monitor_program):
        name = program.__name__.removesuffix(".__main__")
        yield from (f"# python -m {name}", "")
        yield from _parsers(program._parser(), f"python -m {name}")
    yield from ("# Exit codes of python -m monitor_service", "", "| code | name |", "|---|---|")
    yield from (f"| {code.value} | {code.name.lower()} |" for code in monitor_program.ExitCode)
    yield from ("", "# Exit codes of python -m trainer", "")
    yield from ("```", (errors.__doc__ or "").split("\n\n")[1], "```")


def _parsers(parser: argparse.ArgumentParser, words: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                about = [helps[name], ""] if helps.get(name) else []
                yield from (f"## {words} {name}", "", *about)
                yield from _parsers(sub, f"{words} {name}")
            return
    rows = [action for action in parser._actions if action.dest not in ("help", "json")]
    if rows:
        yield from ("| argument | meaning |", "|---|---|")
        yield from (f"| `{_argument(action)}` | {_cell(_help(action))} |" for action in rows)
        yield ""


def _argument(action: argparse.Action) -> str:
    value = str(action.metavar or (action.dest.upper() if action.nargs != 0 else ""))
    return " ".join(filter(None, [", ".join(action.option_strings), value]))


def _help(action: argparse.Action) -> str:
    chosen = f"one of {', '.join(map(str, action.choices))}" if action.choices else ""
    return "; ".join(filter(None, [action.help, chosen]))


def _head(title: str, about: str) -> Iterator[str]:
    yield from (f"# {title}", "", _MADE, "", about, "")


def _table(first: str, fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    yield from (f"| {first} | type | default | meaning |", "|---|---|---|---|")
    for name, field in fields.items():
        kind, meaning = _cell(_type(field.annotation)), _cell(field.description or "")
        yield f"| `{name}` | {kind} | {_default(field)} | {meaning} |"


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(_type, arguments))
    if origin is not None:
        inner = ", ".join(_type(one) for one in arguments if one is not Ellipsis)
        return f"{origin.__name__} of {inner}"
    if annotation is NoneType:
        return "nothing"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " or ".join(annotation)
    return str(getattr(annotation, "__name__", annotation))


def _default(field: FieldInfo) -> str:
    if field.default is not PydanticUndefined:
        default = field.default
        return (
            f"`{json.dumps(str(default) if isinstance(default, Path | StrEnum) else default, default=str)}`"
        )
    return "" if field.default_factory is None else "made anew"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _first_line(section: type[BaseModel]) -> str:
    return (inspect.getdoc(section) or "").split("\n\n")[0].replace("\n", " ")


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text)
        sys.stdout.write(f"{FOLDER / file}\n")
