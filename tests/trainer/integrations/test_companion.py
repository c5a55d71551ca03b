"""A companion beside a plain loop that knows nothing of it."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from shared.base import utc_now
from shared.commands import Command, CommandKind
from trainer.checkpoint import LadderConfig, RingConfig, State
from trainer.errors import ConfigError, RunStopped
from trainer.integrations.companion import Companion
from trainer.integrations.settings import CompanionConfig
from trainer.recovery import RecoveryConfig

Disturb = Callable[["Loop", int], None]


class Loop:
    """Somebody's training: a model, an optimizer, a schedule, and a companion beside it."""

    def __init__(
        self,
        folder: Path,
        make: Callable[..., Optimizer] = AdamW,
        *,
        recovery: Any = None,
        frozen: bool = False,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        self.model[0].requires_grad_(not frozen)
        self.optimizer = make(self.model.parameters(), **{"lr": 1e-2, **options})
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.999)
        config = CompanionConfig(
            folder=folder,
            max_norm=1.0,
            recovery=RecoveryConfig(**{"snapshot_every": 10, "checkpoint_every": 20, **(recovery or {})}),
        )
        self.companion = Companion(config, self.model, self.optimizer)
        self.number = 0

    def train(self, steps: int, disturb: Disturb = lambda loop, number: None) -> None:
        for _ in range(steps):
            self.step(disturb)

    def step(self, disturb: Disturb, pieces: int = 1) -> None:
        companion = self.companion
        companion.before_forward()
        for _ in range(pieces):
            x = torch.randn(16, 4)
            loss = nn.functional.mse_loss(self.model(x), x.sum(1, keepdim=True)) / pieces
            companion.note(loss)
            loss.backward()
        disturb(self, self.number)
        companion.before_update()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        companion.after_update()
        self.number += 1

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@pytest.fixture
def loop_with(tmp_path: Path) -> Iterator[Callable[..., Loop]]:
    loops: list[Loop] = []

    def build(*args: Any, **options: Any) -> Loop:
        loops.append(Loop(tmp_path / str(len(loops)), *args, **options))
        loops[-1].companion.begin()
        return loops[-1]

    yield build
    for loop in loops:
        loop.companion.end("failed")


def nan_gradient_at(step: int) -> Disturb:
    def disturb(loop: Loop, number: int) -> None:
        if number == step:
            gradient = loop.model[0].weight.grad
            assert gradient is not None
            gradient[0, 0] = torch.nan

    return disturb


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (AdamW, {"fused": True}),
        (Adam, {"fused": True}),
        (SGD, {"fused": True, "momentum": 0.9}),
        (AdamW, {}),
        (RMSprop, {}),
        (SGD, {"momentum": 0.9}),
    ],
    ids=["fused AdamW", "fused Adam", "fused SGD", "AdamW", "RMSprop", "SGD"],
)
def test_a_refused_update_changes_no_weight_moment_or_statistic(
    loop_with: Callable[..., Loop], make: Any, options: Any
) -> None:
    loop = loop_with(make, **options)
    loop.train(5)
    before = loop.weights()
    moments = [
        value.clone() for one in loop.optimizer.state.values() for value in one.values() if value is not None
    ]
    loop.step(nan_gradient_at(5))
    assert loop.companion.reporter.record.skipped_steps == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in loop.weights().items())
    now = [value for one in loop.optimizer.state.values() for value in one.values() if value is not None]
    assert all(torch.equal(a, b) for a, b in zip(moments, now, strict=True))
    loop.train(1)
    assert not torch.equal(before["0.weight"], loop.model[0].weight)


def test_a_healthy_training_is_the_one_that_clips_by_itself(loop_with: Callable[..., Loop]) -> None:
    loop = loop_with(SGD, momentum=0.9)
    loop.train(30)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = SGD(model.parameters(), lr=1e-2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
    for _ in range(30):
        x = torch.randn(16, 4)
        nn.functional.mse_loss(model(x), x.sum(1, keepdim=True)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loop.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_pieces_of_an_update_add_up_to_its_loss(loop_with: Callable[..., Loop]) -> None:
    loop = loop_with(AdamW, fused=True)
    torch.manual_seed(1)
    loop.step(lambda *_: None, pieces=4)
    whole = loop.companion.reporter.recent_loss
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    torch.manual_seed(1)
    xs = [torch.randn(16, 4) for _ in range(4)]
    losses = [float(nn.functional.mse_loss(model(x), x.sum(1, keepdim=True)).detach()) for x in xs]
    assert whole == pytest.approx(sum(losses) / 4, rel=1e-5)


def spoiled_at(*steps: int) -> Disturb:
    def disturb(loop: Loop, number: int) -> None:
        if number in steps:
            loop.model[0].weight.data.fill_(torch.nan)

    return disturb


def test_spoiled_weights_go_back_and_a_second_time_the_rate_is_lowered_unseen_by_the_schedule(
    loop_with: Callable[..., Loop],
) -> None:
    rates: list[float] = []
    loop = loop_with(AdamW, fused=True)
    loop.optimizer.register_step_pre_hook(lambda one, *_: rates.append(one.param_groups[0]["lr"]))
    loop.train(60, spoiled_at(30, 50))
    first, second = loop.companion.reporter.record.rollbacks
    assert (first.source, second.source) == ("snapshot", "snapshot")
    assert all(bool(tensor.isfinite().all()) for tensor in loop.weights().values())
    scheduled = 1e-2 * 0.999**59
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(scheduled * 0.999)
    assert rates[-1] < 0.5 * scheduled  # times 0.7, and warmed up again over 50 steps


def test_without_a_rung_left_it_stops_and_leaves_a_report(loop_with: Callable[..., Loop]) -> None:
    loop = loop_with(AdamW, fused=True, recovery={"ladder": LadderConfig(max_rollbacks=0)})
    loop.train(20)
    with pytest.raises(RunStopped, match="corrupt"):
        loop.train(20, spoiled_at(25))
    report = loop.companion.config.folder / "stopped.txt"
    assert "corrupt" in report.read_text()


def test_gradients_that_are_gone_end_it_with_the_reason(loop_with: Callable[..., Loop]) -> None:
    def cut_off(loop: Loop, number: int) -> None:
        for parameter in loop.model.parameters():
            if parameter.grad is not None and number >= 10:
                parameter.grad.zero_()

    loop = loop_with(AdamW, fused=True)
    with pytest.raises(RunStopped, match="gradient"):
        loop.train(20, cut_off)
    assert loop.companion.state.step == 13


def order_back() -> Command:
    now = utc_now()
    return Command(
        id="c-1",
        kind=CommandKind.ROLL_BACK,
        reason="looks wrong",
        issued_by="ana",
        issued_at=now,
        expires_at=now + timedelta(days=365),
        attempt=1,
    )


def test_an_order_to_go_back_is_carried_out_once(
    loop_with: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_with(AdamW, fused=True)
    loop.train(45)
    link = loop.companion.reporter.link
    monkeypatch.setattr(link, "commands", lambda: [order_back()])
    loop.train(2)
    (back,) = loop.companion.reporter.record.rollbacks
    assert (back.trigger, back.command, back.source) == ("command", "c-1", "checkpoint")
    assert back.to_step == 41


def test_an_optimizer_that_evaluates_by_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LBFGS"):
        Loop(tmp_path, torch.optim.LBFGS)


def test_a_training_that_goes_on_elsewhere_gives_up_what_lies_ahead(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.companion.begin()
    loop.train(45)
    loop.companion.end("finished")
    again = Loop(tmp_path)
    again.companion.begin(step=25)
    record = again.companion.reporter.record
    assert record.attempt == 2
    assert max(again.companion.recovery.ring.steps()) <= 25
    again.train(5)
    assert again.companion.state.step == 30
    again.companion.end("finished")


def end_status(loop: Loop) -> str | None:
    return loop.companion.reporter.record.status


def test_an_end_in_corrupt_weights_goes_back_once_more_and_is_told_as_stopped(
    loop_with: Callable[..., Loop], caplog: pytest.LogCaptureFixture
) -> None:
    loop = loop_with(AdamW, fused=True)
    loop.train(25)
    spoiled_at(25)(loop, 25)
    with caplog.at_level("INFO"):
        loop.companion.end("finished")
    assert end_status(loop) == "stopped"
    assert "the end was corrupt, so it went back from step 25 to 21" in caplog.text
    assert all(bool(tensor.isfinite().all()) for tensor in loop.weights().values())
    assert max(loop.companion.recovery.ring.steps()) == 21


def test_an_end_that_is_sound_changes_no_weight_or_statistic(loop_with: Callable[..., Loop]) -> None:
    loop = loop_with(AdamW, fused=True)
    loop.train(25)
    before = loop.weights()
    loop.companion.end("finished")
    assert all(torch.equal(tensor, before[name]) for name, tensor in loop.weights().items())


@pytest.mark.parametrize("is_left_out", [True, False])
def test_after_going_back_no_earlier_forward_pass_is_undone(
    loop_with: Callable[..., Loop], is_left_out: bool
) -> None:
    loop = loop_with(AdamW, fused=True)
    loop.train(25)
    loop.companion.before_forward()
    loop.model(torch.randn(16, 4))
    if is_left_out:
        loop.companion.before_update()
    loop.companion.go_back("looks wrong", "guard")
    restored = loop.weights()
    loop.companion.end("finished")
    assert loop.companion.state.step == 21
    assert all(torch.equal(tensor, restored[name]) for name, tensor in loop.weights().items())


def test_an_end_without_a_rung_left_raises_is_told_as_failed_and_leaves_a_report(
    loop_with: Callable[..., Loop],
) -> None:
    loop = loop_with(AdamW, fused=True, recovery={"ladder": LadderConfig(max_rollbacks=0)})
    loop.train(25)
    spoiled_at(25)(loop, 25)
    with pytest.raises(RunStopped):
        loop.companion.end("finished")
    assert end_status(loop) == "failed"
    assert (loop.companion.config.folder / "stopped.txt").is_file()
    assert not loop.optimizer._optimizer_step_post_hooks  # type: ignore[attr-defined]
    loop.companion.end("finished")
    assert end_status(loop) == "failed", "and what is said a second time is not heard"


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def interrupted(loop: Loop, disturb: Disturb = lambda loop, number: None) -> None:
    """What a framework does with Ctrl-C: the step breaks off, and the companion is told by what."""
    with pytest.raises(KeyboardInterrupt) as caught:
        loop.step(disturb)
    loop.companion.raised(caught.value)


def kept(loop: Loop) -> dict[str, Tensor]:
    """The weights and statistics of the newest checkpoint."""
    return dict(loop.companion.recovery.ring.load_newest(good_first=False).stored.parts["model"])


@pytest.mark.usefixtures("late_numbers")
def test_ctrl_c_in_a_forward_pass_keeps_the_state_of_the_last_update(
    loop_with: Callable[..., Loop], caplog: pytest.LogCaptureFixture
) -> None:
    loop = loop_with(AdamW, fused=True)
    loop.train(25)
    before = loop.weights()
    with caplog.at_level("INFO"):
        interrupted(loop, interrupt)
    assert end_status(loop) == "stopped"
    assert "stopped at step 25 interrupted, as by Ctrl-C" in caplog.text
    assert loop.companion.reporter.record.rollbacks == []
    for state in (loop.weights(), kept(loop)):
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items()), "statistics, too"
    assert max(loop.companion.recovery.ring.steps()) == 25


def test_ctrl_c_amid_an_update_keeps_the_newest_snapshot(
    loop_with: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = loop_with(AdamW, fused=True)
    loop.train(21)
    before = loop.weights()
    loop.train(4)
    monkeypatch.setattr(loop.companion.meter, "settle", interrupt)  # the weights are written by then
    with caplog.at_level("INFO"):
        interrupted(loop)
    assert end_status(loop) == "stopped"
    words = "interrupted, as by Ctrl-C; it ended amid an update, so it went back from step 25 to 21"
    assert words in caplog.text
    for state in (loop.weights(), kept(loop)):
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert max(loop.companion.recovery.ring.steps()) == 21
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.999**25)


def test_ctrl_c_amid_an_update_keeps_a_checkpoint_that_is_newer_than_the_newest_snapshot(
    loop_with: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an older one is good already, and this one only sealed."""
    loop = loop_with(AdamW, fused=True, recovery={"snapshot_every": 50, "ring": RingConfig(promote_after=10)})
    loop.train(40)
    before = loop.weights()
    loop.companion.save_checkpoint()
    for _ in range(2):
        loop.train(1)
        loop.companion.recovery._writer.drain()
    states = {record.step: record.state for record in loop.companion.recovery.ring.records()}
    assert State.GOOD in states.values()
    monkeypatch.setattr(loop.companion.meter, "settle", interrupt)
    interrupted(loop)
    (back,) = loop.companion.reporter.record.rollbacks
    assert (back.source, back.from_step, back.to_step) == ("checkpoint", 42, 40)
    for state in (loop.weights(), kept(loop)):
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert max(loop.companion.recovery.ring.steps()) == 40


def test_ctrl_c_in_corrupt_weights_keeps_the_sound_ones_before(loop_with: Callable[..., Loop]) -> None:
    loop = loop_with(AdamW, fused=True)
    loop.train(25)
    spoiled_at(25)(loop, 25)
    interrupted(loop, interrupt)
    assert end_status(loop) == "stopped"
    assert all(bool(tensor.isfinite().all()) for tensor in kept(loop).values())


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), "stopped", "interrupted, as by Ctrl-C"),
        (OSError("the disk is gone"), "failed", "the disk is gone"),
    ],
    ids=["Ctrl-C", "error"],
)
@pytest.mark.parametrize("was_interrupted", [False, True])
def test_an_end_that_is_broken_off_is_told_by_what(
    loop_with: Callable[..., Loop],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: str,
    words: str,
    was_interrupted: bool,
) -> None:
    loop, told = loop_with(AdamW, fused=True), list[Any]()
    loop.train(5)
    monkeypatch.setattr(loop.companion.reporter, "ended", told.append)
    monkeypatch.setattr(loop.companion.recovery, "keep_last", Mock(side_effect=error))
    with pytest.raises(type(error)) as caught:
        loop.companion.raised(KeyboardInterrupt()) if was_interrupted else loop.companion.end("finished")
    loop.companion.raised(caught.value)
    assert [(one.status, one.message) for one in told] == [
        (status, f"{words}; the last state may not have been kept")
    ]
    assert not loop.optimizer._optimizer_step_post_hooks  # type: ignore[attr-defined]


@pytest.mark.parametrize("updates", [0, 1])
def test_ctrl_c_before_there_is_a_whole_state_keeps_nothing_and_is_told(
    loop_with: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    loop = loop_with(AdamW, fused=True)
    monkeypatch.setattr(loop.companion.recovery, "begin", interrupt)
    if updates:
        interrupted(loop)
    else:
        interrupted(loop, interrupt)
    assert end_status(loop) == "stopped"
    assert loop.companion.recovery.ring.steps() == ()


@pytest.mark.usefixtures("late_numbers")
def test_numbers_that_come_late_refuse_report_and_go_back_all_the_same(
    loop_with: Callable[..., Loop],
) -> None:
    loop = loop_with(AdamW, fused=True)

    def disturb(one: Loop, number: int) -> None:
        nan_gradient_at(12)(one, number)
        spoiled_at(30)(one, number)

    loop.train(60, disturb)
    loop.companion.settle()
    record = loop.companion.reporter.record
    assert record.skips[0].step == 12
    (back,) = record.rollbacks
    assert back.source == "snapshot"
    assert back.from_step <= 33, "heard of two steps later"
    assert loop.companion.state.step == int(loop.companion.meter.applied)
    assert all(bool(tensor.isfinite().all()) for tensor in loop.weights().values())


@pytest.mark.usefixtures("late_numbers")
def test_a_late_number_of_the_stretch_that_was_given_up_counts_for_nothing(
    loop_with: Callable[..., Loop],
) -> None:
    """The refused update sounds the alarm while an applied one, of corrupt weights, is still under way."""
    loop = loop_with(AdamW, fused=True)

    def disturb(one: Loop, number: int) -> None:
        nan_gradient_at(18)(one, number)
        if number == 19:
            one.model[0].weight.data.mul_(1000)

    loop.train(20, disturb)
    loop.companion.settle()
    (back,) = loop.companion.reporter.record.rollbacks
    assert loop.companion.state.step == back.to_step == int(loop.companion.meter.applied)


class HostCounting(Optimizer):
    """Keeps what Adam keeps, but counts on the host, and a word beside it."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
                state.update(step=0, mode="sign", last=None, **moments)
            state["step"] += 1
            state["exp_avg"].lerp_(parameter.grad, 0.1)
            state["exp_avg_sq"].lerp_(parameter.grad.square(), 0.001)
            parameter.add_(state["exp_avg"].sign(), alpha=-self.param_groups[0]["lr"])


@pytest.mark.parametrize("make", [SGD, HostCounting])
def test_any_optimizer_goes_back_with_all_that_it_keeps(loop_with: Callable[..., Loop], make: Any) -> None:
    loop = loop_with(make, lr=1e-3)
    loop.train(37, spoiled_at(35))
    loop.companion.settle()
    (back,) = loop.companion.reporter.record.rollbacks
    assert back.to_step == 31
    assert {state.get("step", 31) for state in loop.optimizer.state.values()} <= {31}
    loop.train(5)
    assert loop.companion.state.step == 36
    loop.companion.end("finished")
    assert end_status(loop) == "finished"


def test_an_optimizer_that_keeps_what_can_t_be_saved_is_told_so(loop_with: Callable[..., Loop]) -> None:
    loop = loop_with(AdamW, fused=True)
    loop.train(1)
    next(iter(loop.optimizer.state.values()))["history"] = [1, 2]
    with pytest.raises(ValueError, match=r"keeps loss/0.weight/history as a list, which can't be saved"):
        loop.train(30)


def thaw_and_spoil(loop: Loop, number: int) -> None:
    """The first layer learns from update 23 on, where its moments are made; at 25 a weight is spoiled."""
    if number == 22:
        loop.model[0].requires_grad_(True)
    spoiled_at(25)(loop, number)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
def test_a_way_back_from_before_a_layer_was_thawed_is_taken(
    loop_with: Callable[..., Loop], fused: bool
) -> None:
    loop = loop_with(AdamW, fused=fused, frozen=True)
    loop.train(25, thaw_and_spoil)
    assert loop.model[0].weight in loop.optimizer.state
    loop.train(2, thaw_and_spoil)
    (back,) = loop.companion.reporter.record.rollbacks
    assert (back.source, back.to_step) == ("snapshot", 21)
    loop.train(10)
    assert loop.companion.state.step == 31
    steps = {name: int(loop.optimizer.state[p]["step"]) for name, p in loop.model.named_parameters()}
    assert steps == {name: 10 if name.startswith("0.") else 31 for name in steps}, "made anew there"


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
def test_a_checkpoint_from_before_a_layer_was_thawed_is_gone_back_to_by_order(
    loop_with: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    loop = loop_with(AdamW, fused=fused, frozen=True)
    loop.train(25, thaw_and_spoil)
    monkeypatch.setattr(loop.companion.reporter.link, "commands", lambda: [order_back()])
    loop.train(1)
    (back,) = loop.companion.reporter.record.rollbacks
    assert (back.source, back.to_step) == ("checkpoint", 21)
    assert loop.model[0].weight not in loop.optimizer.state
    assert loop.model[3].weight in loop.optimizer.state


def test_a_rate_lent_twice_without_a_step_is_lowered_once_and_comes_back_at_the_end(
    loop_with: Callable[..., Loop],
) -> None:
    loop = loop_with(SGD, lr=1.0)
    rates = loop.companion._optimizer._rates
    rates.eased.fill_(0.7)
    for _ in range(3):
        rates.lend()
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(0.7)
    loop.companion.end("failed")
    assert loop.optimizer.param_groups[0]["lr"] == 1.0


def test_an_error_after_an_order_to_stop_is_told_in_its_own_words(
    loop_with: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, told = loop_with(AdamW, fused=True), list[Any]()
    loop.train(2)
    monkeypatch.setattr(loop.companion.reporter, "ended", told.append)
    loop.companion.stop("ana wants the machine")
    loop.companion.end("failed", "the disk is full")
    assert (told[0].status, told[0].message) == ("failed", "the disk is full")


def test_an_optimizer_is_its_owners_again_after_the_end(loop_with: Callable[..., Loop]) -> None:
    """Also where the last update was refused, which it would go on to refuse."""
    loop = loop_with(fused=True)
    loop.train(4, nan_gradient_at(3))
    loop.companion.end("failed", "over")
    before = loop.weights()
    nn.functional.mse_loss(loop.model(torch.randn(16, 4)), torch.zeros(16, 1)).backward()
    loop.optimizer.step()
    assert not torch.equal(loop.weights()["0.weight"], before["0.weight"])


def test_a_companion_that_can_t_begin_leaves_the_optimizer_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("no record")
    model = nn.Linear(4, 1)
    optimizer = AdamW(model.parameters(), fused=True)
    before = set(vars(optimizer))
    companion = Companion(CompanionConfig(folder=tmp_path), model, optimizer)
    with pytest.raises(ConfigError):
        companion.begin()
    assert set(vars(optimizer)) == before
    assert not optimizer._optimizer_step_post_hooks
