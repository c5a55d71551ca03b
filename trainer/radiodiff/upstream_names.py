"""Upstream's names of tensors and ours: one to one, in both directions.

A rule maps the beginning of a name; ``#`` stands for a number and the rest of the name stays. Names that no
rule knows stay as they are: they belong to what our model has no place for.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Literal

Kind = Literal["diffusion", "first_stage"]

RESNET_BLOCK = {"mlp.1": "modulation", "res_conv": "shortcut"}
LINEAR_ATTENTION = {
    "fn.norm.g": "norm.gain",
    "fn.fn.to_qkv": "to_qkv",
    "fn.fn.to_out.0": "to_out",
    "fn.fn.to_out.1.g": "out_norm.gain",
}
FULL_ATTENTION = {"fn.norm.g": "norm.gain", "fn.fn.to_qkv": "to_qkv", "fn.fn.to_out": "to_out"}
RELATION = {
    "input_conv1": "cond_in",
    "input_conv2": "feature_in",
    "attentions.0.q_lin": "attention.query",
    "attentions.0.k_lin": "attention.key",
    "attentions.0.v_lin": "attention.value",
    "attentions.0.mlp.fc1": "attention.mlp.widen",
    "attentions.0.mlp.fc2": "attention.mlp.narrow",
    "attentions.0.concat_conv": "attention.merge",
    "attentions.0.gn": "attention.merge_norm",
    "attentions.0.out_conv": "attention.out",
}
SWIN_BLOCK = {
    "attn.relative_position_bias_table": "attention.position_bias",
    "attn.relative_position_index": "attention.position_index",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "mlp.0": "widen",
    "mlp.3": "narrow",
}
SWIN_STAGES = 4

Rules = dict[str, str]


def _within(upstream: str, ours: str, parts: Mapping[str, str]) -> Rules:
    """Rules for the parts of a module, and one for what has the same name on both sides."""
    inside = {f"{upstream}.{theirs}": f"{ours}.{own}" for theirs, own in parts.items()}
    return {**inside, upstream: ours}


def _decoder_rules(number: str, ours: str) -> Rules:
    """Upstream's second decoder has a 2 behind its names, its first one nothing."""
    return {
        f"model.decouple{number or 1}": f"{ours}.decouple",
        **_within(f"model.ups{number}.#.0", f"{ours}.levels.#.block1", RESNET_BLOCK),
        **_within(f"model.relation_layers_up{number}.#", f"{ours}.levels.#.relation", RELATION),
        **_within(f"model.ups{number}.#.1", f"{ours}.levels.#.block2", RESNET_BLOCK),
        **_within(f"model.ups{number}.#.2", f"{ours}.levels.#.attention", LINEAR_ATTENTION),
        f"model.ups{number}.#.3": f"{ours}.levels.#.resample",
        **_within(f"model.final_res_block{number}", f"{ours}.final_block", RESNET_BLOCK),
        f"model.final_conv{number}": f"{ours}.final_conv",
    }


def _swin_rules(upstream: str, ours: str) -> Rules:
    """Upstream numbers stages and mergings in one list: stages are even, mergings odd."""
    rules = {
        f"{upstream}.first_coonv.0": f"{ours}.patch_conv",
        f"{upstream}.first_coonv.2": f"{ours}.patch_norm",
        f"{upstream}.norm": f"{ours}.norm",
        f"{upstream}.head": f"{ours}.head",
    }
    for stage in range(SWIN_STAGES):
        rules |= _within(f"{upstream}.features.{2 * stage}.#", f"{ours}.stages.{stage}.#", SWIN_BLOCK)
        rules[f"{upstream}.features.{2 * stage + 1}"] = f"{ours}.merges.{stage}"
    return rules


def _unet_rules() -> Rules:
    return {
        **_swin_rules("model.init_conv_mask", "unet.condition_encoder"),
        "model.init_conv_carK": "unet.cars_conv",
        "model.init_conv": "unet.stem",
        "model.projects": "unet.projections",
        "model.time_mlp.0.W": "unet.time_embedding.frequencies",
        "model.time_mlp.1": "unet.time_embedding.hidden",
        "model.time_mlp.3": "unet.time_embedding.out",
        **_within("model.downs.#.0", "unet.levels.#.block1", RESNET_BLOCK),
        **_within("model.relation_layers_down.#", "unet.levels.#.relation", RELATION),
        **_within("model.downs.#.1", "unet.levels.#.block2", RESNET_BLOCK),
        **_within("model.downs.#.2", "unet.levels.#.attention", LINEAR_ATTENTION),
        "model.downs.#.3": "unet.levels.#.resample",
        **_within("model.mid_block1", "unet.middle.block1", RESNET_BLOCK),
        **_within("model.mid_attn", "unet.middle.attention", FULL_ATTENTION),
        **_within("model.mid_block2", "unet.middle.block2", RESNET_BLOCK),
        **_decoder_rules("", "unet.drift_decoder"),
        **_decoder_rules("2", "unet.noise_decoder"),
    }


def _autoencoder_rules(upstream: str) -> Rules:
    return {
        f"{upstream}encoder.down.#.downsample": "autoencoder.encoder.down.#.resample",
        f"{upstream}decoder.up.#.upsample": "autoencoder.decoder.up.#.resample",
        **{
            f"{upstream}{part}": f"autoencoder.{part}"
            for part in ("encoder", "decoder", "quant_conv", "post_quant_conv")
        },
    }


def _loss_rules() -> Rules:
    lpips = "loss.perceptual_loss"
    return {
        "loss.logvar": "logvar",
        "loss.discriminator": "discriminator",
        f"{lpips}.scaling_layer": "perceptual.scaling",
        **{f"{lpips}.net.slice{index + 1}": f"perceptual.slices.{index}" for index in range(5)},
        f"{lpips}.lin#.model.1": "perceptual.linear.#",
    }


RULES: dict[Kind, Rules] = {
    "diffusion": {**_unet_rules(), **_autoencoder_rules("first_stage_model.")},
    "first_stage": {**_autoencoder_rules(""), **_loss_rules()},
}


@cache
def to_ours(name: str, kind: Kind) -> str:
    """Our name of a tensor that upstream calls ``name`` in a file of that kind."""
    return _translate(name, _compiled(kind, reverse=False))


@cache
def to_upstream(name: str, kind: Kind) -> str:
    """Upstream's name of our tensor."""
    return _translate(name, _compiled(kind, reverse=True))


def from_torchvision(name: str) -> str:
    """Our name, inside the condition encoder, of a tensor of torchvision's Swin-B."""
    head, _, rest = name.partition(".")
    if head == "features":
        index, _, rest = rest.partition(".")
        name = f"first_coonv.{rest}" if index == "0" else f"features.{int(index) - 1}.{rest}"
    return to_ours(f"model.init_conv_mask.{name}", "diffusion").removeprefix("unet.condition_encoder.")


@cache
def _compiled(kind: Kind, *, reverse: bool) -> list[tuple[re.Pattern[str], str]]:
    """Patterns and replacements, the longest rule first, because a shorter one may begin a longer one."""
    rules: Iterable[tuple[str, str]] = RULES[kind].items()
    if reverse:
        rules = [(ours, upstream) for upstream, ours in rules]
    return [_as_pattern(*rule) for rule in sorted(rules, key=lambda rule: -len(rule[0]))]


def _as_pattern(before: str, after: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(before).replace(r"\#", r"(\d+)")
    return re.compile(rf"^{pattern}(?=\.|$)"), after.replace("#", r"\1")


def _translate(name: str, table: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in table:
        renamed, matches = pattern.subn(replacement, name)
        if matches:
            return renamed
    return name
