"""Which orders are one order under one key."""

from monitor_service.order_keys import OrderKey
from shared.commands import CommandRequest

WISH = {"kind": "roll_back", "reason": "maps look wrong"}


def test_a_new_field_with_a_default_makes_a_repeat_no_other_order() -> None:
    class Newer(CommandRequest):
        urgency: int = 0

    Newer.__name__ = CommandRequest.__name__  # the same message after an update of the monitor
    before, after = (OrderKey.read("k", kind.model_validate(WISH)) for kind in (CommandRequest, Newer))
    assert before == after
    assert before != OrderKey.read("k", Newer.model_validate({**WISH, "urgency": 1}))
