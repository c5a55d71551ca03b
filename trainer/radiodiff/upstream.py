"""Upstream's checkpoint files: reading them by our names, loading them strictly, writing them back.

A file ``model-*.pt`` holds ``model`` and, to resume a run, ``step``, ``ema`` and optimizer states.
It is read with ``weights_only=True``. Optimizer states are left out: they hang on upstream's order of things.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.radiodiff.autoencoder import Autoencoder
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.radiodiff.unet import CAR_CHANNELS
from trainer.radiodiff.upstream_names import Kind, from_torchvision, to_ours, to_upstream

Tensors = dict[str, Tensor]

SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "p2_loss_weight",
)
"""Registered by upstream and read by nobody: the constant-drift process needs none of them."""

NO_PLACE = re.compile(
    rf"({'|'.join(SCHEDULE_BUFFERS)})$"
    r"|(first_stage_model\.)?loss_pinn(_dpm2irt4)?\."
    r"|first_stage_model\.loss\."
    r"|perceptual\."
)
"""Names that a file may hold although the model has no place for them."""


class UpstreamMismatch(ValueError):
    """A file does not fit the model; the attributes hold upstream's names of all tensors in question."""

    def __init__(self, path: Path, missing: list[str], extra: list[str], different: list[str]) -> None:
        found = [("lacks", missing), ("has no place for", extra), ("differs in", different)]
        facts = "; ".join(f"{verb} {', '.join(names)}" for verb, names in found if names)
        super().__init__(
            f"{path.name} does not fit this model: {facts}. Give the configuration that it was trained with."
        )
        self.path, self.missing, self.extra, self.different = path, missing, extra, different


@dataclass(frozen=True, slots=True)
class UpstreamFile:
    """What a file holds, by our names.

    Attributes:
        weights: the live model, with what our model has no place for.
        ema: the averaged model, or None where the file has none.
        step: updates done, or None in a file that holds a model only.
    """

    path: Path
    kind: Kind
    weights: Tensors
    ema: Tensors | None
    step: int | None

    @property
    def release(self) -> Literal["2024-12", "2025"]:
        """Files of the first release have neither the cars' convolution nor the second pair of losses."""
        newer = any("loss_pinn." in name or name.startswith("unet.cars_conv.") for name in self.weights)
        return "2025" if newer or self.kind == "first_stage" else "2024-12"


def read_file(path: Path) -> UpstreamFile:
    """Read a ``model-*.pt`` of either stage; nothing in it is run. Costs two reads of the file.

    Raises:
        ValueError: no such checkpoint, or one that can't be read.
    """
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no PyTorch file that can be read ({error}); copy it again") from error
    tensors = _tensors_of(content, path)
    kind: Kind = "diffusion" if any(name.startswith("model.") for name in tensors) else "first_stage"
    return UpstreamFile(
        path=path,
        kind=kind,
        weights={to_ours(name, kind): tensor for name, tensor in tensors.items()},
        ema=_ema_of(content, kind),
        step=int(content["step"]) if "step" in content else None,
    )


def load_diffusion(model: LatentDiffusion, file: UpstreamFile, *, use_ema: bool = False) -> Tensors:
    """Load a file of the second stage strictly.

    Returns:
        What the model has no place for, by our names: hand it to ``write_file`` to get the same file back.

    Raises:
        ValueError: a first-stage file, no EMA where one was asked for, or a release that applies the
            frequency filters otherwise than the model does.
        UpstreamMismatch: tensors missing, too many, or of another shape.
    """
    _check_kind(file, "diffusion")
    config = model.config
    if file.release == "2024-12" and (config.unet.apply_aft or config.weighting == "published"):
        raise ValueError(
            f"{file.path.name} is of the release of 2024-12, which did not apply the frequency filters "
            'and weighted its loss otherwise; set unet.apply_aft = false and weighting = "2024-12"'
        )
    if file.release == "2025" and not config.unet.apply_aft:
        raise ValueError(
            f"{file.path.name} was trained with the frequency filters, so it draws nothing of use without "
            "them; set unet.apply_aft = true"
        )
    optional = () if config.unet.cond_channels == CAR_CHANNELS else ("unet.cars_conv.",)
    return _load(model, _chosen(file, use_ema), file, optional)


def load_first_stage(model: FirstStage, file: UpstreamFile, *, use_ema: bool = False) -> Tensors:
    """Load a file of the first stage strictly, but for LPIPS, which has its own. See ``load_diffusion``."""
    _check_kind(file, "first_stage")
    return _load(model, _chosen(file, use_ema), file, ("perceptual.",))


def load_autoencoder(model: Autoencoder, file: UpstreamFile, *, use_ema: bool = True) -> None:
    """Load the autoencoder out of a file of either stage, averaged if the file has an EMA.

    Raises:
        UpstreamMismatch: a file for another configuration.
    """
    tensors = _chosen(file, use_ema and file.ema is not None)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("autoencoder.")}
    _load(nn.ModuleDict({"autoencoder": model}), own, file, ())


def load_torchvision_swin(encoder: nn.Module, path: Path) -> None:
    """Start the condition encoder from torchvision's ImageNet weights of Swin-B.

    Raises:
        UpstreamMismatch: a file for another configuration.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    tensors = {f"unet.condition_encoder.{from_torchvision(name)}": tensor for name, tensor in content.items()}
    file = UpstreamFile(path, "diffusion", tensors, ema=None, step=None)
    _load(nn.ModuleDict({"unet": nn.ModuleDict({"condition_encoder": encoder})}), tensors, file, ())


def write_file(
    path: Path,
    model: LatentDiffusion | FirstStage,
    *,
    leftovers: Mapping[str, Tensor] | None = None,
    ema: Mapping[str, Tensor] | None = None,
    step: int | None = None,
) -> None:
    """Write a checkpoint for upstream, whole or not at all.

    Upstream's test and fine-tuning scripts read it as it is. To resume there is more than we have: optimizer
    states, and without ``leftovers`` the unused schedule buffers and the losses of the first stage.

    Args:
        leftovers: what the loading function gave back.
        ema: averaged weights by our names; what it lacks is taken from the model.
    """
    kind: Kind = "diffusion" if isinstance(model, LatentDiffusion) else "first_stage"
    weights = {**(leftovers or {}), **_tensors_known_to_upstream(model)}
    content: dict[str, Any] = {"model": _renamed(weights, kind)}
    if step is not None:
        content["step"] = step
    if ema is not None:
        content["ema"] = _ema_content(weights, {**weights, **ema}, kind, step or 0)
    partial = path.with_name(path.name + ".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def _check_sums(path: Path) -> None:
    """torch.load takes flipped bits for weights; but its files are zip archives, which hold checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not agree with its checksum")


def _tensors_of(content: Any, path: Path) -> Tensors:
    """The live model: under ``model``, under ``state_dict``, or the whole file."""
    if isinstance(content, dict):
        found = next((content[key] for key in ("model", "state_dict") if key in content), content)
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        if any("encoder.conv_in." in name for name in tensors):
            return tensors
    raise ValueError(
        f"{path} holds no RadioDiff model; give a model-*.pt that upstream's training has written"
    )


def _ema_of(content: Mapping[str, Any], kind: Kind) -> Tensors | None:
    prefix, ema = "ema_model.", content.get("ema")
    if not ema:
        return None
    return {to_ours(name.removeprefix(prefix), kind): ema[name] for name in ema if name.startswith(prefix)}


def _ema_content(live: Tensors, averaged: Tensors, kind: Kind, step: int) -> Tensors:
    return {
        "initted": torch.tensor([True]),
        "step": torch.tensor([step]),
        **{f"online_model.{name}": tensor for name, tensor in _renamed(live, kind).items()},
        **{f"ema_model.{name}": tensor for name, tensor in _renamed(averaged, kind).items()},
    }


def _renamed(tensors: Mapping[str, Tensor], kind: Kind) -> Tensors:
    return {to_upstream(name, kind): tensor.detach().cpu() for name, tensor in tensors.items()}


def _chosen(file: UpstreamFile, use_ema: bool) -> Tensors:
    if not use_ema:
        return file.weights
    if file.ema is None:
        raise ValueError(f"{file.path.name} holds no EMA; load its live weights (use_ema = false)")
    return file.ema


def _check_kind(file: UpstreamFile, wanted: Kind) -> None:
    if file.kind != wanted:
        raise ValueError(f"{file.path.name} is a {file.kind} checkpoint; give one of the {wanted} stage")


def _tensors_known_to_upstream(model: nn.Module) -> Tensors:
    """State dict and constant buffers; a model without frequency filters is of 2024-12 and had no cars."""
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    if isinstance(model, LatentDiffusion) and not model.config.unet.apply_aft:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("unet.cars_conv.")}
    return tensors


def _load(module: nn.Module, tensors: Tensors, file: UpstreamFile, optional: tuple[str, ...]) -> Tensors:
    """Load what belongs to ``module`` and give back the rest; ``optional`` prefixes may be missing."""
    own = module.state_dict()
    constant = {name: buffer for name, buffer in module.named_buffers() if name not in own}
    leftovers = {name: tensor for name, tensor in tensors.items() if name not in own and name not in constant}
    missing = [name for name in own if name not in tensors and not name.startswith(optional)]
    extra = [name for name in leftovers if not NO_PLACE.match(name)]
    different = [name for name in own if name in tensors and not _same_form(own[name], tensors[name])]
    different += [
        name for name in constant if name in tensors and not torch.equal(constant[name].cpu(), tensors[name])
    ]
    if missing or extra or different:
        raise UpstreamMismatch(
            file.path,
            *([to_upstream(name, file.kind) for name in names] for names in (missing, extra, different)),
        )
    module.load_state_dict({name: tensors.get(name, own[name]) for name in own})
    return leftovers


def _same_form(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and ours.dtype == theirs.dtype
