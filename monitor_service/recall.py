"""Facts by the very text that they were written down as: whoever finds that text in a row need not parse it.

A text that another monitor wrote, or that was undone, is found in no row or kept nowhere; then it is parsed.
"""

from collections import OrderedDict

from monitor_service.facts import Facts

MOST = 1024
"""Runs whose facts are kept, well above those that ``/metrics`` tells of; those written longest ago leave."""

_kept: OrderedDict[str, Facts] = OrderedDict()


def facts_in(text: str) -> Facts:
    """The facts that a row's text says. They are the caller's own, to be changed."""
    return _kept.pop(text, None) or Facts.model_validate_json(text)


def keep(text: str, facts: Facts) -> None:
    """Remember facts that were written as ``text``; from here on nobody changes them."""
    _kept[text] = facts
    if len(_kept) > MOST:
        _kept.popitem(last=False)
