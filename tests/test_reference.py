"""The reference pages say what the code says: whoever changes a key, message or route writes them anew."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_current(reference: ModuleType) -> None:
    for name, text in reference.pages().items():
        found = (ROOT / "docs" / "reference" / name).read_text()
        assert found == text, f"docs/reference/{name} is old; run python docs/reference.py"


def test_every_key_of_the_configuration_and_every_setting_says_what_it_is_for(reference: ModuleType) -> None:
    for page in ("config.md", "settings.md"):
        rows = re.findall(r"^\| `(\S+)` \|.*\| (.*) \|$", reference.pages()[page], re.MULTILINE)
        assert rows
        assert [name for name, meaning in rows if not meaning] == []


def test_every_link_of_the_documents_leads_to_a_file() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
