"""Parts, names, shapes and dtypes of a state: what must be the same before any tensor is taken over."""

from collections.abc import Mapping, Sequence

from trainer.checkpoint.tensors import DTYPE_CODES, Parts

SHOWN = 5
"""Names in a message; the others are counted."""

Layout = Mapping[str, Mapping[str, tuple[tuple[int, ...], str]]]
"""Part, name, then shape and dtype code."""


def match(expected: Parts, stored: Parts) -> str | None:
    """How ``stored`` differs from what a loop takes: keys both ways, shapes, dtypes. ``None``: not at all.

    Looks at no values, so ``expected`` may live on any device.
    """
    return difference(layout_of(expected), layout_of(stored))


def layout_of(parts: Parts) -> Layout:
    """Reads no values."""
    return {
        part: {
            name: (tuple(tensor.shape), DTYPE_CODES.get(tensor.dtype, str(tensor.dtype)))
            for name, tensor in tensors.items()
        }
        for part, tensors in parts.items()
    }


def difference(expected: Layout, found: Layout) -> str | None:
    """Both ways, in words; parts first, since an empty part has no tensor to miss."""
    lines = [
        some("missing", sorted(set(expected) - set(found)), "part"),
        some("not expected", sorted(set(found) - set(expected)), "part"),
    ]
    wanted, there = _flat(expected), _flat(found)
    both = sorted(set(wanted) & set(there))
    lines += [
        some("missing", sorted(set(wanted) - set(there))),
        some("not expected", sorted(set(there) - set(wanted))),
        some(
            "of another shape",
            [_versus(n, wanted[n][0], there[n][0]) for n in both if wanted[n][0] != there[n][0]],
        ),
        some(
            "of another dtype",
            [_versus(n, wanted[n][1], there[n][1]) for n in both if wanted[n][1] != there[n][1]],
        ),
    ]
    return "; ".join(line for line in lines if line) or None


def _flat(layout: Layout) -> dict[str, tuple[tuple[int, ...], str]]:
    return {f"{part}/{name}": one for part, tensors in layout.items() for name, one in tensors.items()}


def _versus(name: str, expected: object, found: object) -> str:
    return f"{name} {found} for {expected}"


def some(what: str, names: Sequence[str], noun: str = "tensor") -> str | None:
    """``3 tensors with NaN: a, b, c``; the first five names, and how many there are."""
    if not names:
        return None
    more = ", ..." if len(names) > SHOWN else ""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} {noun}{plural} {what}: {', '.join(names[:SHOWN])}{more}"
