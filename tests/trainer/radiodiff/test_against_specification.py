"""The U-Net against its slow second writing, by upstream's names: values and gradients must agree."""

import pytest
import torch
from torch import Tensor

from benchmarks.radiodiff_reference import Reference
from trainer.radiodiff.swin import SwinConfig
from trainer.radiodiff.unet import Unet, UnetConfig, input_size_for
from trainer.radiodiff.upstream_names import to_upstream

HEIGHT, WIDTH = 128, 96
DEPTHS = (2, 2, 2, 2)
CONFIG = UnetConfig(
    dim=16,
    input_size=input_size_for((HEIGHT, WIDTH)),
    swin=SwinConfig(embed_dim=16, depths=DEPTHS, heads=(1, 2, 4, 8), num_classes=10),
)


def built(dtype: torch.dtype) -> tuple[Unet, dict[str, Tensor]]:
    """A model in eval mode, no tensor of which is as it began, and leaf copies by upstream's names."""
    torch.manual_seed(1)
    unet = Unet(CONFIG).to(dtype).eval()
    for name, tensor in unet.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("bias", "gain", "running_mean", "position_bias")):
            tensor.add_(torch.randn_like(tensor) * 0.2)
    copies = {
        to_upstream(f"unet.{name}", "diffusion"): tensor.clone() for name, tensor in unet.state_dict().items()
    }
    trained = {
        to_upstream(f"unet.{name}", "diffusion") for name, p in unet.named_parameters() if p.requires_grad
    }
    return unet, {name: tensor.requires_grad_(name in trained) for name, tensor in copies.items()}


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(2, 3, HEIGHT // 4, WIDTH // 4, dtype=dtype)
    cond = torch.rand(2, 3, HEIGHT, WIDTH, dtype=dtype) * 2 - 1
    t = torch.tensor([0.03, 0.8], dtype=dtype)
    return x, t, cond, torch.randn_like(x), torch.randn_like(x)


# position codes are float32 in the model: 1e-6; float32 throughout collects rounding over some hundred layers
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_outputs_and_gradients_agree_with_the_specification(dtype: torch.dtype, tolerance: float) -> None:
    unet, tensors = built(dtype)
    x, t, cond, along_drift, along_noise = inputs(dtype)
    ours = unet(x, t, cond)
    theirs = Reference(tensors, CONFIG).unet(x, t, cond)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < tolerance * other.std()

    for drift, noise in (ours, theirs):
        ((drift * along_drift).sum() + (noise * along_noise).sum()).backward()
    # the keys' biases move all logits of a row alike: their gradient is rounding only, so a floor is needed
    total = torch.stack([p.grad.norm() for p in tensors.values() if p.grad is not None]).norm()
    for name, parameter in unet.named_parameters():
        expected = tensors[to_upstream(f"unet.{name}", "diffusion")].grad
        assert (parameter.grad is None) == (expected is None), name
        if parameter.grad is not None and expected is not None:
            allowed = 50 * tolerance * (expected.norm() + 1e-5 * total)
            assert (parameter.grad - expected).norm() < allowed, name
