"""The picture of the house: a file imports only what is drawn below it (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("shared", "trainer", "monitor_service")

FACTS = ("monitor_service.facts", "monitor_service.concerns")

# Each room, and the rooms of ours that it may import besides itself.
ROOMS: dict[str, tuple[str, ...]] = {
    "shared.base": (),
    "shared.events": ("shared.base",),
    "shared.commands": ("shared.base",),
    "shared.exchange": ("shared.base", "shared.events", "shared.commands"),
    "trainer.section": (),
    "trainer.errors": (),
    "trainer.guards": ("shared.events", "trainer.section"),
    "trainer.checkpoint": ("trainer.section",),
    "trainer.link": ("shared", "trainer.section"),
    "trainer.radiodiff": ("trainer.section",),
    "trainer.data": ("trainer.section",),
    "trainer.ema": ("trainer.guards", "trainer.section"),
    "trainer.held": (),
    "trainer.objective": ("trainer.guards", "trainer.held", "trainer.section"),
    "trainer.precision": (),
    "trainer.files": (),
    "trainer.claim": ("trainer.errors",),
    "trainer.pictures": ("shared",),
    "trainer.record": ("shared", "trainer.files"),
    "trainer.probe": ("trainer.guards", "trainer.ema"),
    "trainer.ranks": ("trainer.errors",),
    "trainer.sharding": ("trainer.errors", "trainer.ranks"),
    "trainer.averaging": ("trainer.guards", "trainer.ranks"),
    "trainer.common_ring": ("trainer.checkpoint", "trainer.ranks"),
    "trainer.state": (
        *("trainer.guards", "trainer.checkpoint", "trainer.ema", "trainer.foreign"),
        *("trainer.moments", "trainer.ranks", "trainer.section"),
        *("trainer.per_rank", "trainer.random_states", "trainer.sharding"),
    ),
    "trainer.stage": (
        *("trainer.checkpoint", "trainer.config", "trainer.data", "trainer.radiodiff", "trainer.section"),
    ),
    "trainer.foreign": (),
    "trainer.moments": ("trainer.guards",),
    "trainer.random_states": (),
    "trainer.per_rank": ("trainer.random_states", "trainer.ranks"),
    "trainer.remedies": (
        *("shared", "trainer.checkpoint", "trainer.factors", "trainer.reporting", "trainer.state"),
    ),
    "trainer.restoring": (*("trainer.checkpoint", "trainer.common_ring", "trainer.probe", "trainer.state"),),
    "trainer.reporting": ("shared", "trainer.guards", "trainer.link", "trainer.record"),
    "trainer.factors": ("shared", "trainer.section"),
    "trainer.incident": (
        *("shared", "trainer.checkpoint", "trainer.files", "trainer.guards"),
        *("trainer.precision", "trainer.reporting", "trainer.section"),
    ),
    "trainer.recovery": (
        *("shared", "trainer.checkpoint", "trainer.errors", "trainer.section"),
        *("trainer.common_ring", "trainer.incident", "trainer.probe", "trainer.remedies"),
        *("trainer.reporting", "trainer.restoring", "trainer.saves", "trainer.settings", "trainer.state"),
    ),
    "trainer.watchdog": ("trainer.section",),
    "trainer.taken": ("shared", "trainer.guards"),
    "trainer.news": ("shared",),
    "trainer.stopped": (
        *("shared", "trainer.files", "trainer.incident", "trainer.record", "trainer.reporting"),
    ),
    "trainer.agreement": (
        *("shared", "trainer.news", "trainer.recovery", "trainer.reporting", "trainer.state"),
    ),
    "trainer.saves": (
        *("shared", "trainer.checkpoint", "trainer.common_ring", "trainer.probe", "trainer.reporting"),
        "trainer.state",
    ),
    "trainer.settings": (),
    "trainer.judging": (
        *("shared", "trainer.errors", "trainer.guards", "trainer.incident", "trainer.news"),
        *("trainer.recovery", "trainer.reporting", "trainer.state"),
    ),
    "trainer.under_way": ("trainer.guards", "trainer.taken"),
    "trainer.passes": (
        *("shared", "trainer.guards", "trainer.held", "trainer.news", "trainer.objective"),
        *("trainer.precision", "trainer.probe", "trainer.taken"),
    ),
    "trainer.loop": (
        *("shared", "trainer.checkpoint", "trainer.errors", "trainer.guards", "trainer.incident"),
        *("trainer.objective", "trainer.orders", "trainer.passes", "trainer.precision", "trainer.probe"),
        "trainer.under_way",
        *("trainer.recovery", "trainer.refusals", "trainer.reporting", "trainer.state", "trainer.watchdog"),
        *("trainer.agreement", "trainer.judging", "trainer.news", "trainer.stopped", "trainer.taken"),
    ),
    "monitor_service.settings": (),
    "monitor_service.tables": (),
    "monitor_service.record": (),
    "monitor_service.landmarks": ("shared",),
    "monitor_service.concerns": ("shared", "monitor_service.record"),
    "monitor_service.history": ("monitor_service.record",),
    "monitor_service.readings": ("shared", "monitor_service.record"),
    "monitor_service.wire": ("shared", "monitor_service.record"),
    "monitor_service.facts": (
        *("shared", "monitor_service.concerns", "monitor_service.history", "monitor_service.wire"),
        *("monitor_service.readings", "monitor_service.record", "monitor_service.landmarks"),
    ),
    "monitor_service.health": ("shared", "monitor_service.settings", *FACTS),
    "monitor_service.rules": ("shared", "monitor_service.settings", *FACTS),
    "monitor_service.risk": ("shared", "monitor_service.settings", *FACTS, "monitor_service.health"),
    "monitor_service.policy": ("shared", "monitor_service.settings", *FACTS, "monitor_service.health"),
}
WITHOUT_TORCH = ("shared", "trainer.link", "monitor_service")


def modules() -> list[tuple[str, Path]]:
    """Every module of ours by its dotted name."""
    files = (path for side in OURS for path in (ROOT / side).rglob("*.py"))
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path)
        for path in files
        if "embedded" not in path.parts
    ]


def imports(path: Path) -> Iterator[str]:
    """Dotted names of the modules that the file imports; of ``from a import b`` that is ``a``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the whole name"
            assert node.module is not None
            yield node.module


def inside(module: str, room: str) -> bool:
    """Whether ``module`` is ``room`` or within it."""
    return module == room or module.startswith(room + ".")


@pytest.mark.parametrize(("room", "below"), ROOMS.items(), ids=ROOMS)
def test_a_room_imports_only_what_is_drawn_below_it(room: str, below: tuple[str, ...]) -> None:
    for module, path in modules():
        if not inside(module, room):
            continue
        for name in imports(path):
            if name.split(".")[0] in OURS:
                assert any(inside(name, allowed) for allowed in (room, *below)), f"{module} imports {name}"


def test_the_two_programs_never_import_each_other() -> None:
    for module, path in modules():
        side = module.split(".")[0]
        others = {"shared": OURS[1:], "trainer": ("monitor_service",), "monitor_service": ("trainer",)}[side]
        for name in imports(path):
            assert name.split(".")[0] not in others, f"{module} imports {name}"


@pytest.mark.parametrize(
    "top", ["trainer.__main__", "trainer.drill", "trainer.integrations", "monitor_service.__main__"]
)
def test_nothing_stands_on_what_is_drawn_on_top(top: str) -> None:
    for module, path in modules():
        if not inside(module, top) and not module.endswith(".__main__"):
            assert not any(inside(name, top) for name in imports(path)), f"{module} imports {top}"


def test_no_torch_where_it_would_only_weigh() -> None:
    for module, path in modules():
        if any(inside(module, room) for room in WITHOUT_TORCH):
            assert not any(inside(name, "torch") for name in imports(path)), f"{module} imports torch"


def test_every_room_in_the_picture_exists() -> None:
    names = [module for module, _ in modules()]
    for room in ROOMS:
        assert any(inside(module, room) for module in names), f"{room} is drawn but not built"
