"""diffusers' denoisers and autoencoders, a block or two a level."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foreign_cases import PLACES, UNEQUAL, Case, Make, draw, images, of

TIMES = "the sinusoidal table of time steps grows, and is computed anew"


def times(w: int, *sizes: int) -> tuple[int, ...]:
    return tuple(w * size for size in sizes)


class Conditioned(nn.Module):
    """Looks texts up and grows with the denoiser that reads them."""

    def __init__(self, w: int, denoiser: nn.Module) -> None:
        super().__init__()
        self.text, self.denoiser = nn.Embedding(32, 16 * w), denoiser

    def forward(self, sample: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        return self.denoiser(sample, timestep, encoder_hidden_states=self.text(ids)).sample


def cases() -> Iterator[Case]:
    import diffusers
    from diffusers.models import autoencoders, transformers, unets

    when, ids = torch.tensor([3, 700]), torch.arange(10).reshape(2, 5)
    latent, context = draw(2, 4, 8, 8), draw(2, 5, 16)

    def unet(w: int, first: int, **options: Any) -> nn.Module:
        kinds = {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }  # fmt: skip
        sizes: dict[str, Any] = {
            "block_out_channels": (first, 16 * w),
            "layers_per_block": 1,
            "norm_num_groups": 4,
        }
        return unets.UNet2DModel(in_channels=4, out_channels=4, **kinds | sizes | options)

    def conditioned(
        w: int, first: int, cross: int = 16, kind: Any = unets.UNet2DConditionModel, **options: Any
    ) -> nn.Module:
        sizes: dict[str, Any] = {
            "block_out_channels": (first, 16 * w), "layers_per_block": 1, "norm_num_groups": 4,
            "cross_attention_dim": cross, "attention_head_dim": 2 * w,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        }  # fmt: skip
        return kind(in_channels=4, out_channels=4, **sizes | options)

    def controlled(w: int) -> nn.Module:
        return diffusers.ControlNetModel(
            4, block_out_channels=(8, 16 * w), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
            attention_head_dim=2 * w, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            conditioning_embedding_out_channels=times(w, 4, 4, 8, 8),
        )  # fmt: skip

    learned = {"time_embedding_type": "learned", "num_train_timesteps": 1000}
    fourier = {"time_embedding_type": "fourier", "time_embedding_dim": 32}
    yield from of(
        {
            "UNet2DModel": lambda w: unet(w, 8 * w),
            "UNet2DModel_upper_level": lambda w: unet(w, 8),
            "UNet2DModel_learned_times": lambda w: unet(w, 8 * w, **learned),
            "UNet2DModel_time_scale": lambda w: unet(
                w, 8 * w, resnet_time_scale_shift="scale_shift", **learned
            ),
            "UNet2DModel_fourier_times": lambda w: unet(w, 8 * w, time_embedding_type="fourier"),
        },
        {"sample": latent, "timestep": when},
        {"UNet2DModel": TIMES, "UNet2DModel_upper_level": UNEQUAL},
    )
    yield from of(
        {
            "UNet2DConditionModel": lambda w: conditioned(w, 8 * w),
            "UNet2DConditionModel_upper_level": lambda w: conditioned(w, 8),
            "UNet2DConditionModel_fourier": lambda w: conditioned(w, 8 * w, **fourier),
            "UNet2DConditionModel_linear": lambda w: conditioned(
                w, 8 * w, use_linear_projection=True, **fourier
            ),
        },
        {"sample": latent, "timestep": when, "encoder_hidden_states": context},
        {"UNet2DConditionModel": TIMES, "UNet2DConditionModel_upper_level": UNEQUAL},
    )
    yield Case(
        "UNet2DConditionModel_grown_text",
        lambda w: Conditioned(w, conditioned(w, 8 * w, cross=16 * w, **fourier)),
        (latent, when, ids),
    )
    yield Case(
        "UVit2DModel",
        lambda w: diffusers.UVit2DModel(
            hidden_size=16 * w, cond_embed_dim=16, micro_cond_encode_dim=8, micro_cond_embed_dim=40, encoder_hidden_size=16,
            vocab_size=32, codebook_size=30, in_channels=16 * w, block_out_channels=16 * w, num_res_blocks=1,
            block_num_heads=2 * w, num_hidden_layers=1, num_attention_heads=2 * w, intermediate_size=32 * w, sample_size=4,
        ),
        {
            "input_ids": torch.arange(32).reshape(2, 4, 4) % 30, "encoder_hidden_states": context,
            "pooled_text_emb": draw(2, 16), "micro_conds": torch.rand(2, 5) * 100,
        },
    )  # fmt: skip
    yield Case(
        "ControlNetModel",
        controlled,
        {
            "sample": latent,
            "timestep": when,
            "encoder_hidden_states": context,
            "controlnet_cond": draw(2, 3, 64, 64),
        },
    )
    yield Case(
        "UNet1DModel",
        lambda w: diffusers.UNet1DModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=times(w, 32, 32), norm_num_groups=4,
            extra_in_channels=64 * w, down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
            up_block_types=("UpBlock1D", "UpBlock1DNoSkip"), mid_block_type="UNetMidBlock1D",
        ),
        {"sample": draw(2, 4, 64), "timestep": when.float()},
        UNEQUAL,
    )  # fmt: skip
    yield Case(
        "UNet3DConditionModel",
        lambda w: conditioned(
            w, 8 * w, kind=diffusers.UNet3DConditionModel, attention_head_dim=8,
            down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"), up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        ),
        {"sample": draw(2, 4, 2, 8, 8), "timestep": when, "encoder_hidden_states": context},
        TIMES,
    )  # fmt: skip
    yield Case(
        "UNetMotionModel",
        lambda w: diffusers.UNetMotionModel(
            block_out_channels=(8, 16 * w), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
            num_attention_heads=2 * w, motion_num_attention_heads=2 * w, use_motion_mid_block=False,
            down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
            up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        ),
        {"sample": draw(2, 4, 2, 8, 8), "timestep": when, "encoder_hidden_states": draw(4, 5, 16)},
        PLACES,
    )  # fmt: skip

    levels: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    coders: dict[str, Make] = {
        "AutoencoderKL": lambda w: diffusers.AutoencoderKL(
            block_out_channels=times(w, 8, 16), norm_num_groups=4, **levels
        ),
        "VQModel": lambda w: diffusers.VQModel(
            block_out_channels=times(w, 8, 16), norm_num_groups=4, num_vq_embeddings=16, **levels
        ),
        "AutoencoderTiny": lambda w: diffusers.AutoencoderTiny(
            encoder_block_out_channels=times(w, 8, 8), decoder_block_out_channels=times(w, 8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        "AutoencoderDC": lambda w: diffusers.AutoencoderDC(
            latent_channels=4, attention_head_dim=8, encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=times(w, 8, 16),
            decoder_block_out_channels=times(w, 8, 16), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), encoder_out_shortcut=False,
            decoder_in_shortcut=False,
        ),
    }  # fmt: skip
    scrambled = "its heads run across what the query, key and value weights give"
    yield from of(coders, images(16, batch=2), {"AutoencoderDC": scrambled})
    yield Case(
        "AsymmetricAutoencoderKL",
        lambda w: diffusers.AsymmetricAutoencoderKL(
            down_block_out_channels=times(w, 8, 16), up_block_out_channels=times(w, 8, 16), norm_num_groups=4, **levels
        ),
        {"sample": images(16, batch=2), "mask": (draw(2, 1, 16, 16) > 0).float()},
    )  # fmt: skip
    yield Case(
        "AutoencoderOobleck",
        lambda w: autoencoders.AutoencoderOobleck(8 * w, [2, 2], [1, 2], 8 * w, 4 * w, 2),
        {"sample": draw(2, 2, 64), "sample_posterior": False},
    )

    heads: dict[str, Any] = {"attention_head_dim": 8, "num_layers": 2}
    yield Case(
        "DiTTransformer2DModel",
        lambda w: transformers.DiTTransformer2DModel(
            num_attention_heads=2 * w, sample_size=8, norm_num_groups=4, **heads
        ),
        {"hidden_states": latent, "timestep": when, "class_labels": torch.tensor([1, 2])},
        PLACES,
    )
    yield Case(
        "PixArtTransformer2DModel",
        lambda w: transformers.PixArtTransformer2DModel(
            num_attention_heads=2 * w, sample_size=8, cross_attention_dim=16 * w, caption_channels=16, norm_num_groups=4,
            use_additional_conditions=False, **heads,
        ),
        {"hidden_states": latent, "timestep": when, "encoder_hidden_states": context},
        PLACES,
    )  # fmt: skip
    yield Case(
        "Transformer2DModel",
        lambda w: nn.Sequential(
            nn.Conv2d(4, 16 * w, 1),
            transformers.Transformer2DModel(2 * w, 8, in_channels=16 * w, norm_num_groups=4, num_layers=2),
            Sample(),
            nn.Conv2d(16 * w, 4, 1),
        ),
        latent,
    )
    pooled = {"pooled_projections": draw(2, 12)}
    yield Case(
        "SD3Transformer2DModel",
        lambda w: transformers.SD3Transformer2DModel(
            sample_size=8, in_channels=4, num_attention_heads=2 * w, joint_attention_dim=16, caption_projection_dim=16 * w,
            pooled_projection_dim=12, out_channels=4, pos_embed_max_size=8, qk_norm="rms_norm", **heads,
        ),
        {"hidden_states": latent, "timestep": when, "encoder_hidden_states": context, **pooled},
    )  # fmt: skip
    yield Case(
        "AuraFlowTransformer2DModel",
        lambda w: transformers.AuraFlowTransformer2DModel(
            sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2 * w,
            joint_attention_dim=16, caption_projection_dim=16 * w, pos_embed_max_size=16,
        ),
        {"hidden_states": latent, "timestep": when / 1000, "encoder_hidden_states": context},
    )  # fmt: skip
    places = {"img_ids": draw(16, 3).round(), "txt_ids": torch.zeros(5, 3)}
    yield Case(
        "FluxTransformer2DModel",
        lambda w: transformers.FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2 * w,
            joint_attention_dim=16, pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 2, 2),
        ),
        {
            "hidden_states": draw(2, 16, 4), "timestep": when / 1000, "encoder_hidden_states": context,
            "guidance": torch.ones(2), **pooled, **places,
        },
    )  # fmt: skip
    yield Case(
        "SanaTransformer2DModel",
        lambda w: transformers.SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2 * w, num_cross_attention_heads=2 * w,
            cross_attention_head_dim=8, cross_attention_dim=16 * w, caption_channels=16, sample_size=8, **heads,
        ),
        {"hidden_states": latent, "timestep": when, "encoder_hidden_states": context},
    )  # fmt: skip
    yield Case(
        "LTXVideoTransformer3DModel",
        lambda w: transformers.LTXVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2 * w, cross_attention_dim=16 * w, caption_channels=16, **heads
        ),
        {
            "hidden_states": draw(2, 8, 4), "timestep": when, "encoder_hidden_states": context,
            "encoder_attention_mask": torch.ones(2, 5), "num_frames": 2, "height": 2, "width": 2,
        },
        "rotary frequencies run over all of the heads together",
    )  # fmt: skip
    yield Case(
        "WanTransformer3DModel",
        lambda w: transformers.WanTransformer3DModel(
            (1, 2, 2),
            2 * w,
            8,
            4,
            4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32 * w,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        {"hidden_states": draw(2, 4, 2, 8, 8), "timestep": when, "encoder_hidden_states": context},
    )
    yield Case(
        "CogVideoXTransformer3DModel",
        lambda w: transformers.CogVideoXTransformer3DModel(
            2 * w, 8, 4, 4, time_embed_dim=16, text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8,
            sample_frames=5, max_text_seq_length=5,
        ),
        {"hidden_states": draw(2, 2, 4, 8, 8), "encoder_hidden_states": context, "timestep": when},
        PLACES,
    )  # fmt: skip
    yield Case(
        "PriorTransformer",
        lambda w: transformers.PriorTransformer(2 * w, 8, 2, embedding_dim=16, num_embeddings=5),
        {
            "hidden_states": draw(2, 16), "timestep": when, "proj_embedding": draw(2, 16), "encoder_hidden_states": context,
        },
        TIMES,
    )  # fmt: skip
    yield Case(
        "StableAudioDiTModel",
        lambda w: transformers.StableAudioDiTModel(
            sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4 * w,
            num_key_value_attention_heads=2 * w, out_channels=4, cross_attention_dim=16 * w, time_proj_dim=8,
            global_states_input_dim=12, cross_attention_input_dim=16,
        ),
        {
            "hidden_states": draw(2, 4, 8), "timestep": when / 1000, "encoder_hidden_states": context,
            "global_hidden_states": draw(2, 1, 12),
        },
    )  # fmt: skip
    yield Case(
        "T2IAdapter", lambda w: diffusers.T2IAdapter(3, list(times(w, 8, 16)), 1, 2), images(16, batch=2)
    )


class Sample(nn.Module):
    """Takes the sample out of what a model of diffusers returns."""

    def forward(self, output: Any) -> Tensor:
        return output.sample
