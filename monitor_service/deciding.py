"""The commands of a person who decides: ``accept``, ``cancel``, choose ``rules``, look at ``alerts``."""

import argparse
import getpass
from typing import Any

from monitor_service.asking import Add, add_url, as_json, client_of, say
from monitor_service.client import Client
from monitor_service.commands import CANCELLABLE
from monitor_service.errors import MonitorError
from monitor_service.rulebook import RulesView
from shared.commands import CommandState


class WrongArguments(MonitorError):
    """Arguments of a command that do not go together."""


def add_commands(commands: Any, add: Add) -> None:
    """Let the parser know these commands."""
    accept = add(commands, "accept", _accept, "order the rollback that is suggested for a run")
    accept.add_argument("run", metavar="RUN")
    cancel = add(commands, "cancel", _cancel, "take a command back that the trainer has not accepted")
    cancel.add_argument("run", metavar="RUN")
    cancel.add_argument("command", metavar="COMMAND", nargs="?", help="its id; default: the only open one")
    cancel.add_argument("--reason", required=True)
    rules = add(commands, "rules", _rules, "what the monitor looks out for, and does by itself")
    rules.add_argument("run", metavar="RUN", nargs="?")
    rules.add_argument("--project", help="of all runs of a project, instead of one run")
    rules.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="may be given again")
    rules.add_argument("--unset", action="append", default=[], metavar="NAME", help="as it is elsewhere")
    rules.add_argument("--reason", help="why; needed with --set and --unset")
    alerts = add(commands, "alerts", _alerts, "which alerts came from Alertmanager, and what became of them")
    alerts.add_argument("--run")
    alerts.add_argument("--status", choices=["firing", "resolved"])
    for command in (accept, cancel, rules, alerts):
        add_url(command)


def _accept(arguments: argparse.Namespace) -> None:
    with client_of(arguments) as client:
        stands = client.health(arguments.run).suggestion
        # With none, the monitor says how the run is; "none" is the id of no suggestion.
        command = client.accept(arguments.run, "none" if stands is None else stands.id, _who())
    say(arguments, as_json(command), f"{command.run}: rollback ordered, command {command.id}")


def _cancel(arguments: argparse.Namespace) -> None:
    with client_of(arguments) as client:
        id_ = arguments.command or _only_open(client, arguments.run)
        command = client.cancel(arguments.run, id_, arguments.reason, _who())
    is_done = command.state == CommandState.CANCELLED
    said = (
        "cancelled" if is_done else "the trainer has it and is asked to drop it; its life tells what it did"
    )
    say(arguments, as_json(command), f"{command.run}: {command.kind} {command.id}: {said}")


def _only_open(client: Client, run: str) -> str:
    found = [one for one in client.health(run).open_commands if one.state in CANCELLABLE]
    if len(found) == 1:
        return found[0].id
    told = ", ".join(f"{one.id} ({one.kind})" for one in found) or "none"
    raise WrongArguments(f"{run} has {len(found)} commands that can be cancelled: {told}; name one")


def _rules(arguments: argparse.Namespace) -> None:
    if (arguments.run is None) == (arguments.project is None):
        raise WrongArguments("name a run, or a project with --project")
    is_choice = bool(arguments.set or arguments.unset)
    if is_choice and not arguments.reason:
        raise WrongArguments("--set and --unset need --reason: it stays on record")
    with client_of(arguments) as client:
        view = client.rules(arguments.run, arguments.project)
        if is_choice:
            view = _choose(client, arguments, view)
    say(arguments, as_json(view), _in_words(view))


def _choose(client: Client, arguments: argparse.Namespace, view: RulesView) -> RulesView:
    own = view.of_project if arguments.run is None else view.of_run
    chosen = {name: value for name, value in own.items() if name not in arguments.unset}
    for pair in arguments.set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise WrongArguments(f"--set {pair}: say NAME=VALUE")
        chosen[name] = value
    wish = {"values": chosen, "reason": arguments.reason, "changed_by": _who()}
    return client.choose(arguments.run, arguments.project, wish)


def _in_words(view: RulesView) -> str:
    lines = [f"{view.run or 'all runs'} in project {view.project}"]
    for name, value in view.values.items():
        source = "run" if name in view.of_run else "project" if name in view.of_project else ""
        shown = value if isinstance(value, str) else f"{value:g}"
        lines.append(f"  {name} = {shown}" + (f"  (of the {source})" if source else ""))
    for change in view.history:
        lines.append(f"  {change.changed_at.isoformat()} by {change.changed_by}: {change.reason}")
    return "\n".join(lines)


def _alerts(arguments: argparse.Namespace) -> None:
    with client_of(arguments) as client:
        for alert in client.alerts(run=arguments.run, status=arguments.status).items:
            about = f"{alert.starts_at.isoformat()}  {alert.alertname}  {alert.run or '-'}"
            words = f"{about}  {alert.status}  {alert.result}: {alert.detail}"
            say(arguments, as_json(alert), words)


def _who() -> str:
    """The name under which a person works here."""
    try:
        return getpass.getuser()[:100]
    except (KeyError, OSError):  # a user without a name, in a container
        return "operator"
