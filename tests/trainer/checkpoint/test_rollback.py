"""The ladder climbs with what happens, takes what is at hand, and never loops."""

import json
import random
from dataclasses import replace

import pytest

from trainer.checkpoint import (
    AS_BEFORE,
    Easing,
    Ladder,
    LadderConfig,
    LoadCheckpoint,
    Refuse,
    RestoreSnapshot,
    Stop,
)

SNAPSHOTS, CHECKPOINTS = (450, 400), (400, 200)


def corrupt(
    ladder: Ladder,
    *steps: int,
    snapshots: tuple[int, ...] = SNAPSHOTS,
    checkpoints: tuple[int, ...] = CHECKPOINTS,
) -> RestoreSnapshot | LoadCheckpoint | Stop:
    answers = [ladder.corrupt(step, snapshots=snapshots, checkpoints=checkpoints) for step in steps]
    return answers[-1]


def whither(rung: object) -> object:
    """A rung without what goes along with it."""
    return replace(rung, easing=AS_BEFORE) if isinstance(rung, RestoreSnapshot | LoadCheckpoint) else rung


@pytest.mark.parametrize(
    ("steps", "rung"),
    [
        ((460,), RestoreSnapshot(450)),
        ((460, 462), RestoreSnapshot(400)),
        ((460, 462, 464), LoadCheckpoint(460)),
        ((420, 460, 462), LoadCheckpoint(420)),
    ],
)
def test_each_corruption_in_the_window_climbs_one_rung(steps: tuple[int, ...], rung: object) -> None:
    assert whither(corrupt(Ladder(LadderConfig()), *steps)) == rung


def test_corruptions_further_apart_than_the_window_do_not_climb() -> None:
    ladder = Ladder(LadderConfig(window=1000))
    corrupt(ladder, 460)
    assert corrupt(ladder, 1460, snapshots=(1450, 1400)) == RestoreSnapshot(1450)
    assert whither(corrupt(ladder, 2459, snapshots=(2450, 2400))) == RestoreSnapshot(2400)


@pytest.mark.parametrize(
    ("steps", "snapshots", "checkpoints", "rung"),
    [
        ((460,), (), (200,), LoadCheckpoint(460)),
        ((460,), (460, 470), (200,), LoadCheckpoint(460)),
        ((460, 462), (450,), (200,), LoadCheckpoint(462)),
        ((460, 462), (450,), (), RestoreSnapshot(450)),
        ((460, 500, 502), (450, 400), (480,), LoadCheckpoint(502)),
        ((460, 462, 464), (450, 400), (), RestoreSnapshot(400)),
    ],
)
def test_where_a_rung_has_nothing_to_offer_the_next_best_is_taken(
    steps: tuple[int, ...], snapshots: tuple[int, ...], checkpoints: tuple[int, ...], rung: object
) -> None:
    answer = corrupt(Ladder(LadderConfig()), *steps, snapshots=snapshots, checkpoints=checkpoints)
    assert whither(answer) == rung


def test_with_nothing_to_go_back_to_it_stops_and_says_so() -> None:
    answer = corrupt(Ladder(LadderConfig()), 460, snapshots=(460,), checkpoints=(500,))
    assert answer == Stop("corrupt at step 460 and no snapshot or checkpoint from before it")


def test_the_rollback_after_the_last_allowed_one_is_a_stop() -> None:
    ladder = Ladder(LadderConfig(max_rollbacks=8, window=2))
    for step in range(460, 468):
        assert not isinstance(corrupt(ladder, step), Stop)
    assert corrupt(ladder, 468) == Stop("corrupt again at step 468 after 8 rollbacks, all that are allowed")


def test_a_second_corruption_lowers_the_rate_a_third_the_clip_too_and_a_fourth_stops() -> None:
    ladder = Ladder(LadderConfig())
    answers = [corrupt(ladder, step) for step in (460, 462, 464, 466)]
    easings = [getattr(answer, "easing", None) for answer in answers]
    assert easings[:3] == [AS_BEFORE, Easing(0.7, 1.0, 50), Easing(0.5, 0.7, 50)]
    assert answers[3] == Stop(
        "corrupt again at step 466: 4 times within 1000 steps, and going back has not helped"
    )


def unexplained(ladder: Ladder, *steps: int, snapshots: tuple[int, ...] = SNAPSHOTS) -> list[object]:
    return [
        ladder.unexplained(step, step + 5, snapshots=snapshots, checkpoints=CHECKPOINTS) for step in steps
    ]


def test_the_third_unexplained_refusal_goes_back_a_hundred_steps_and_past_the_data() -> None:
    answers = unexplained(Ladder(LadderConfig()), 520, 540, 560)
    assert answers[:2] == [Refuse(), Refuse()]
    assert answers[2] == RestoreSnapshot(400, Easing(0.7), past=520 + 5 + 200)
    assert unexplained(Ladder(LadderConfig()), 520, 540, 560, snapshots=(510,))[2] == LoadCheckpoint(
        421, Easing(0.7), past=725
    )


def test_refusals_far_apart_do_not_add_up() -> None:
    assert set(unexplained(Ladder(LadderConfig()), 500, 600, 700, 800, 900)) == {Refuse()}


def test_a_fourth_unexplained_refusal_in_the_window_stops() -> None:
    ladder = Ladder(LadderConfig())
    unexplained(ladder, 520, 540, 560)
    (answer,) = unexplained(ladder, 1559)
    assert isinstance(answer, Stop)
    assert "stays bad though the run went back" in answer.reason
    ladder = Ladder(LadderConfig())
    unexplained(ladder, 520, 540, 560)
    assert unexplained(ladder, 1560) == [Refuse()]


def test_without_a_way_back_skipping_goes_on() -> None:
    assert unexplained(Ladder(LadderConfig()), 100, 101, 102, 103)[:2] == [Refuse()] * 2
    ladder = Ladder(LadderConfig())
    answers = [ladder.unexplained(step, step, snapshots=(), checkpoints=()) for step in range(9)]
    assert answers == [Refuse()] * 9


def test_the_budget_is_the_runs_and_not_the_windows() -> None:
    ladder = Ladder(LadderConfig(window=10, max_rollbacks=2))
    answers = [corrupt(ladder, step, snapshots=(step - 1,)) for step in (1000, 2000, 3000)]
    assert [type(answer) for answer in answers] == [RestoreSnapshot, RestoreSnapshot, Stop]


def test_thirty_two_refusals_in_a_row_are_allowed_and_the_next_stops() -> None:
    ladder = Ladder(LadderConfig(max_refused_in_row=32))
    assert [ladder.refused(7) for _ in range(32)] == [Refuse()] * 32
    assert ladder.refused(7) == Stop("33 updates refused in a row at step 7")


def test_an_applied_update_ends_the_row() -> None:
    ladder = Ladder(LadderConfig(max_refused_in_row=2))
    for step in (7, 8, 9):
        assert [ladder.refused(step), ladder.refused(step)] == [Refuse(), Refuse()]
        ladder.applied()


def test_a_rollback_ends_the_row() -> None:
    ladder = Ladder(LadderConfig(max_refused_in_row=2))
    ladder.refused(460)
    ladder.refused(460)
    corrupt(ladder, 460)
    assert ladder.refused(460) == Refuse()


def test_its_memory_survives_a_round_trip_through_json_at_any_moment() -> None:
    dice = random.Random(5)
    config = LadderConfig(window=100, max_rollbacks=20, max_refused_in_row=3)
    ladder = twin = Ladder(config)
    for step in range(200, 400, 3):
        if dice.random() < 0.3:
            answers = {
                str(one.unexplained(step, step, snapshots=(190,), checkpoints=(50,)))
                for one in {ladder, twin}
            }
        elif dice.random() < 0.2:
            answers = {
                str(one.corrupt(step, snapshots=(190, 150), checkpoints=(100,))) for one in {ladder, twin}
            }
        else:
            answers = {str(one.refused(step)) for one in {ladder, twin}}
            if step % 4:
                for one in {ladder, twin}:
                    one.applied()
        assert len(answers) == 1
        twin = Ladder(config)
        twin.load_state_dict(json.loads(json.dumps(ladder.state_dict())))
        assert twin.state_dict() == ladder.state_dict()


def test_half_a_memory_changes_nothing() -> None:
    ladder = Ladder(LadderConfig())
    corrupt(ladder, 460)
    before = ladder.state_dict()
    with pytest.raises(KeyError):
        ladder.load_state_dict({"num_rollbacks": 0, "corrupt_at": []})
    assert ladder.state_dict() == before


def test_no_story_of_corruptions_goes_on_for_ever() -> None:
    dice = random.Random(9)
    for _ in range(50):
        ladder, step, rollbacks = Ladder(LadderConfig()), 500, 0
        while not isinstance(answer := corrupt(ladder, step, snapshots=(step - 5, 300)), Stop):
            rollbacks += 1
            back_to = answer.step if isinstance(answer, RestoreSnapshot) else 200
            step = back_to + dice.randrange(1, 2000)
        assert rollbacks <= 8
