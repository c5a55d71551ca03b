"""The safetensors container: written piece by piece from the tensors' own memory, read by the library.

The library's ``save`` builds the whole file in memory first, and its ``save_file`` neither syncs nor tells
the errno of a full disk. The format: 8 bytes of header length, a JSON header, the tensors' bytes.
"""

import json
from collections.abc import Iterator, Mapping

import safetensors
import safetensors.torch
from torch import Tensor

from trainer.checkpoint.tensors import DTYPE_CODES, as_bytes

_ALIGNMENT_BYTES = 8


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file's content in order: header, then each tensor's bytes, wide dtypes first to align all.

    Args:
        tensors: contiguous, on the host, of a dtype in ``DTYPE_CODES``.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    yield _header(ordered)
    for _, tensor in ordered:
        yield as_bytes(tensor)


def parse(content: bytes) -> dict[str, Tensor]:
    """The tensors of one file, each with memory of its own.

    Raises:
        ValueError: not a safetensors file, or a damaged one.
    """
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"is not a readable safetensors file: {error}") from error


def _header(ordered: list[tuple[str, Tensor]]) -> bytes:
    entries, begin = {}, 0
    for name, tensor in ordered:
        end = begin + tensor.nbytes
        entries[name] = {
            "dtype": DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text
