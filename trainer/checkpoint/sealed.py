"""A page that notices when a byte of it was changed: JSON with the sha256 of its own text as last entry."""

import hashlib
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

_MARK = b',\n "sha256": "'
_END = b'"\n}\n'


class SealedPage(BaseModel):
    """Base of the small files that say what the large ones hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def seal(self) -> bytes:
        """This page as it goes to disk: readable JSON."""
        body = self.model_dump_json(indent=1).encode()
        return body.removesuffix(b"\n}") + _MARK + _digest(body) + _END

    @classmethod
    def unseal(cls, raw: bytes) -> Self:
        """The page in ``raw``, proved byte by byte before anything in it is believed.

        Raises:
            ValueError: cut short, changed, or not a page of this kind.
        """
        head, mark, tail = raw.rpartition(_MARK)
        if not mark:
            raise ValueError("has no seal: it was cut short or is something else")
        body = head + b"\n}"
        if tail != _digest(body) + _END:
            raise ValueError("does not match its own sha256: it was changed after it was written")
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"is not readable here: {place} {first['msg']}".replace("  ", " ")) from error


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
