"""The page that is written last: what a checkpoint holds, so that its presence proves the rest."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from torch import Tensor

from trainer.checkpoint.sealed import SealedPage
from trainer.checkpoint.tensors import DTYPE_CODES, digest

FORMAT = 1
MANIFEST_FILE = "manifest.json"
FACTS_FILE = "state.json"
_PART_SUFFIX = ".safetensors"

PartName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorEntry(_Entry):
    """One tensor: enough to know it again. ``dtype`` is the name in safetensors, ``BF16`` for example."""

    shape: tuple[int, ...]
    dtype: str
    xxh3_128: str

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """The entry of a contiguous host tensor."""
        return cls(shape=tuple(tensor.shape), dtype=DTYPE_CODES[tensor.dtype], xxh3_128=digest(tensor))


class FileEntry(_Entry):
    """One file: its size and the hash of its content."""

    size_bytes: int
    xxh3_128: str


class Manifest(SealedPage):
    """What a checkpoint holds, in format 1."""

    format: int
    step: int = Field(ge=0)
    attempt: int = Field(ge=1)
    created: AwareDatetime
    probe_loss: float | None = Field(allow_inf_nan=False)
    files: dict[str, FileEntry]
    parts: dict[PartName, dict[str, TensorEntry]]

    @property
    def size_bytes(self) -> int:
        """All files together, this page aside."""
        return sum(entry.size_bytes for entry in self.files.values())

    @model_validator(mode="before")
    @classmethod
    def _format_is_known(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise ValueError(f"format {data.get('format')!r}; this version reads format {FORMAT}")
        return data

    @model_validator(mode="after")
    def _each_part_has_its_file(self) -> Self:
        expected = {FACTS_FILE, *map(part_file, self.parts)}
        if set(self.files) != expected:
            raise ValueError(f"files {sorted(self.files)} where its parts need {sorted(expected)}")
        return self


def part_file(part: str) -> str:
    """The name of the file of a part."""
    return part + _PART_SUFFIX


def part_of(file: str) -> str | None:
    """The part in a file, or ``None`` for one without tensors."""
    return file.removesuffix(_PART_SUFFIX) if file.endswith(_PART_SUFFIX) else None


def describe(tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    """The manifest's view of one part's tensors, contiguous on the host."""
    return {name: TensorEntry.of(tensor) for name, tensor in tensors.items()}
