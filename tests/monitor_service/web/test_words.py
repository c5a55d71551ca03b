"""Events in words."""

import math

import pytest

from monitor_service.health import RunStatus
from monitor_service.web import words
from shared.events import (
    AttemptStarted,
    Change,
    CheckpointState,
    Finding,
    Incident,
    OpaqueEvent,
    Rollback,
    RunEnded,
    Severity,
    StepSkipped,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, words.DASH), (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, f"{words.MINUS}∞"), (0.0, "0"),
        (0.123456, "0.1235"), (-3.2, f"{words.MINUS}3.2"), (1e-5, f"1e{words.MINUS}5"),
        (123456.0, "1.235e5"), (1e20, "1e20"),
    ],
)  # fmt: skip
def test_a_number_keeps_four_digits_and_says_when_it_is_none(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"), (0.08, "80 ms"), (5.0, "5 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (math.inf, "∞ s"),
    ],
)  # fmt: skip
def test_a_duration_comes_in_the_unit_that_suits_it(value: float, text: str) -> None:
    assert words.seconds(value) == text


def test_a_finding_leaves_out_the_list_of_the_batch_and_keeps_all_else() -> None:
    message = (
        "diffusion: loss is nan; the update was refused on the device; the batch held m_0, m_1 and 5 more"
    )
    told = words.tell(Finding(step=3, guard="nonfinite", severity=Severity.ERROR, message=message))
    assert told is not None
    assert told.text == "nonfinite: diffusion: loss is nan; the update was refused on the device"
    assert words.brief("the batch held; on to the next") == "the batch held; on to the next"


def test_of_many_samples_the_first_few_are_named() -> None:
    ids = tuple(f"m_{number}" for number in range(9))
    told = words.tell(StepSkipped(step=3, reason="spike", loss=1.0, grad_norm=2.0, sample_ids=ids))
    assert told is not None
    assert told.numbers.endswith("samples m_0, m_1, m_2, m_3 and 5 more")


def test_a_rollback_tells_from_where_to_where_by_whom_and_the_price() -> None:
    event = Rollback(
        step=250,
        from_step=250,
        to_step=249,
        source="snapshot",
        reason="bad weights",
        trigger="guard",
        seconds=0.08,
    )
    told = words.tell(event)
    assert told is not None
    assert (
        told.text
        == "From step 250 back to 249 by a guard, from a snapshot: bad weights. Cost 1 step and 80 ms."
    )


def test_an_attempt_after_a_rollback_is_not_told_twice() -> None:
    assert words.tell(AttemptStarted(step=240, attempt=2, reason="rollback")) is None
    resumed = words.tell(AttemptStarted(step=240, attempt=2, reason="resume", checkpoint="c-240"))
    assert resumed is not None
    assert resumed.text == "The run resumes at step 240 from checkpoint c-240."


def test_an_event_of_a_later_version_is_shown_by_its_name() -> None:
    told = words.tell(OpaqueEvent(type="lr_lowered", step=3))
    assert told is not None
    assert "lr_lowered" in told.text


def test_an_end_without_a_message_still_says_how_and_where() -> None:
    told = words.tell(RunEnded(step=600, status="stopped"))
    assert told is not None
    assert told.text == "The run stopped at step 600."


def test_every_state_has_a_sign_of_its_own() -> None:
    assert set(words.STATUS) == set(RunStatus)
    assert set(words.CHECKPOINT) == set(CheckpointState)
    assert set(words.SEVERITY) == set(Severity)
    for signs in (words.STATUS, words.CHECKPOINT, words.SEVERITY):
        labels = [sign.label for sign in signs.values()]
        assert len(labels) == len(set(labels)), "colour and icon alone would tell them apart"


def test_a_change_and_its_undo_say_what_goes_where() -> None:
    down = Change(step=9, what="lr_factor", value=0.7, previous=1.0, reason="second corruption")
    aside = Change(step=9, what="quarantine", value="12_3", previous="", reason="NaN in its image")
    told = [words.tell(down), words.tell(aside)]
    assert told[0] is not None
    assert told[1] is not None
    assert told[0].text == ("The factor on the learning rate goes from 1 to 0.7: second corruption.")
    assert told[1].text == "Sample 12_3 set aside: NaN in its image."


def test_an_incident_is_one_sentence_with_its_price() -> None:
    event = Incident(
        step=9,
        incident="i-9",
        onset_step=8,
        guard="nonfinite",
        kind="data",
        module="unet.init_conv",
        message="NaN came from sample 12_3.",
        action="It is set aside.",
        outcome="healed",
        sample_ids=("12_3",),
    )
    telling = words.tell(event)
    assert telling is not None
    assert telling.text == (
        "Incident i-9 (data in unet.init_conv): NaN came from sample 12_3. It is set aside."
    )
    assert telling.numbers == "cost 0 steps and 0 s, samples 12_3"
