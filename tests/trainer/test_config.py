"""A configuration that will not do is refused: a line each with path, value, and what is allowed."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer.config import Config, load
from trainer.errors import ConfigError
from trainer.section import Section

Place = tuple[str, ...]
Refusal = Callable[[str], list[str]]


def sections(section: type[Section] = Config, place: Place = ()) -> Iterator[Place]:
    """Every table that a configuration can have."""
    yield place
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation, (*place, name))


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """The lines in which a TOML text is refused, without the first, which names the file."""

    def refuse(text: str) -> list[str]:
        path = tmp_path / "run.toml"
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            load(path)
        first, *lines = str(error.value).splitlines()
        assert first == f"{path} will not do:"
        return lines

    return refuse


@pytest.mark.parametrize("place", list(sections()), ids=".".join)
def test_an_unknown_key_is_refused_in_every_section(refusal: Refusal, place: Place) -> None:
    header = f"[{'.'.join(place)}]\n" if place else ""
    (line,) = refusal(f"{header}stepss = 1\n")
    assert line.startswith(f"  {'.'.join((*place, 'stepss'))}: no such key; there are ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[recovery]\nsnapshot_every = 0", "recovery.snapshot_every = 0: .* greater than or equal to 1"),
        ("[run]\nname = 'a b'", "run.name = 'a b': .* match pattern"),
        ("[run]\nthreads = 'many'", "run.threads = 'many': .* valid integer"),
        ("[run]\nthreads = 1.5", "run.threads = 1.5: .* integer"),
        ("[run]\ndevice = 'gpu'", "run.device = 'gpu': not a device .* cpu, cuda"),
        ("[diffusion.training.optimizer]\nlr = -1.0", "optimizer.lr = -1.0: .* greater than 0"),
        ("[diffusion.training.optimizer]\nbetas = [0.9, 1.0]", "betas.1 = 1.0: .* less than 1"),
        (
            "[diffusion.training.optimizer]\nschedule = 'cosine'",
            "schedule = 'cosine': .*'polynomial' or 'constant'",
        ),
        ("[link]\nurl = 'localhost'", "link.url = 'localhost': .* write http://HOST:PORT"),
        ("[data]\nimage_size = 48", "data.image_size = 48: .* take 32, 64, 128 or 256"),
        (
            "[first_stage.model.autoencoder]\nbase_channels = 16",
            "first_stage.model.autoencoder: width 16 is no",
        ),
        ("diffusion = 3", r"diffusion = 3: .* a table; write its keys under \[diffusion\]"),
        ("diffusion = 3\n[first_stage.model.autoencoder]", "diffusion = 3: .* a table"),
        ("[diffusion]\nmodel = 3\n[first_stage.model.autoencoder]", "diffusion.model = 3: .* a table"),
        (
            "[diffusion.model.autoencoder]\nz_channels = 9\n[first_stage.model.autoencoder]\nz_channels = 3",
            "first_stage.model.autoencoder and diffusion.model.autoencoder differ",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(refusal: Refusal, text: str, words: str) -> None:
    (line,) = refusal(text)
    assert re.search(words, line), line


def test_all_that_is_wrong_is_told_at_once(refusal: Refusal) -> None:
    lines = refusal("typo = 1\n[run]\nthreads = 0\n[link]\nflush_s = 0")
    assert [line.split(" = ")[0].split(":")[0].strip() for line in lines] == [
        "run.threads",
        "link.flush_s",
        "typo",
    ]


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*no\.toml: No such file"):
        load(tmp_path / "no.toml")


@pytest.mark.parametrize("content", [b"=", b"[run", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_no_toml_is_refused_with_the_place(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml is not TOML: .*(line 1|position 0|end of document)"):
        load(path)


def test_an_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("")
    assert load(path) == Config()


def test_the_second_stage_takes_over_the_autoencoder_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[first_stage.model.autoencoder]\nbase_channels = 64\n[diffusion.model]\neps = 0.01\n")
    config = load(path)
    assert config.diffusion.model.autoencoder.base_channels == 64
    assert config.diffusion.model.eps == 0.01
