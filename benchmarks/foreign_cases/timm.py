"""timm's architectures, one or more of each family, a few dozen channels wide and a block or two deep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from foreign_cases import MIXED, NEIGHBOURS, ROTARY, UNEQUAL, Case, images


def times(w: int, *sizes: int) -> tuple[int, ...]:
    return tuple(w * size for size in sizes)


def made(family: str, name: str, **options: Any) -> nn.Module:
    """A class of one of timm's modules, for 7 classes."""
    module: nn.Module = getattr(import_module(f"timm.models.{family}"), name)(num_classes=7, **options)
    return module


def vit(family: str, name: str, w: int, *, side: int = 32, patch: int = 8, **options: Any) -> nn.Module:
    """24·w wide in 3·w heads."""
    sizes: dict[str, Any] = {"embed_dim": 24 * w, "depth": 2, "num_heads": 3 * w}
    return made(family, name, img_size=side, patch_size=patch, **sizes | options)


def hybrid(w: int, blocks: Sequence[str], **conv: Any) -> nn.Module:
    """CoAtNet and MaxViT, whose sizes stand in a config of their own."""
    from timm.models.maxxvit import MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg

    config = MaxxVitCfg(
        embed_dim=times(w, 16, 32),
        depths=(1, 2),
        block_type=blocks,
        stem_width=8 * w,
        conv_cfg=MaxxVitConvCfg(**conv),
        transformer_cfg=MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4)),
    )
    return made("maxxvit", "MaxxVit", cfg=config, img_size=32)


def mvit(w: int, **options: Any) -> nn.Module:
    from timm.models.mvitv2 import MultiScaleVitCfg

    config = MultiScaleVitCfg(
        depths=(1, 2),
        embed_dim=times(w, 16, 32),
        num_heads=times(w, 2, 4),
        stride_q=((1, 1), (2, 2)),
        **options,
    )
    return made("mvitv2", "MultiScaleVit", cfg=config, img_size=(32, 32))


def naflex(w: int, **options: Any) -> nn.Module:
    from timm.models.naflexvit import NaFlexVitCfg

    config = NaFlexVitCfg(patch_size=8, embed_dim=24 * w, depth=2, num_heads=3 * w, **options)
    return made("naflexvit", "NaFlexVit", cfg=config)


def mobile(family: str, name: str, w: int, blocks: Sequence[str], **options: Any) -> nn.Module:
    """Nets whose blocks stand in strings, as MobileNet's and EfficientNet's do."""
    from timm.models._efficientnet_builder import decode_arch_def, round_channels

    return made(
        family,
        name,
        block_args=decode_arch_def([[block] for block in blocks]),
        stem_size=8,
        num_features=48 * w,
        round_chs_fn=partial(round_channels, multiplier=w),
        **options,
    )


def byo(w: int, kind: str, **options: Any) -> nn.Module:
    """Bring-your-own-blocks."""
    from timm.models.byobnet import ByoBlockCfg, ByoModelCfg

    attention = {key: options.pop(key) for key in ("self_attn_layer", "self_attn_kwargs") if key in options}
    block = {key: options.pop(key) for key in ("gs", "br") if key in options}
    last = ByoBlockCfg(
        "self_attn" if attention else kind, d=1, c=32 * w, s=2, **(block if not attention else {})
    )
    config = ByoModelCfg(
        blocks=(ByoBlockCfg(kind, d=2, c=16 * w, s=2, **block), last), stem_chs=8 * w, **attention, **options
    )
    return made("byobnet", "ByobNet", cfg=config, img_size=32)


def resnet(w: int, block: str = "resnet.Bottleneck", **options: Any) -> nn.Module:
    family, _, name = block.partition(".")
    options = {"base_width": 64, "stem_width": 8 * w, **options}
    kind = getattr(import_module(f"timm.models.{family}"), name)
    return made(
        "resnet", "ResNet", block=kind, layers=[1, 1, 1, 1], channels=times(w, 12, 12, 24, 24), **options
    )


def csp(w: int, **options: Any) -> nn.Module:
    from timm.models.cspnet import CspModelCfg, CspStagesCfg, CspStemCfg

    stages = CspStagesCfg(depth=(1, 2), out_chs=times(w, 16, 32), **options)
    return made("cspnet", "CspNet", cfg=CspModelCfg(stem=CspStemCfg(out_chs=8 * w), stages=stages))


def regnet(w: int, **options: Any) -> nn.Module:
    from timm.models.regnet import RegNetCfg

    config = RegNetCfg(depth=6, w0=8 * w, wa=8.0 * w, wm=2.0, stem_width=8 * w, **options)
    return made("regnet", "RegNet", cfg=config)


def nfnet(w: int, **options: Any) -> nn.Module:
    from timm.models.nfnet import NfCfg

    config = NfCfg(depths=(1, 1, 1, 1), channels=times(w, 16, 32, 32, 32), stem_chs=8 * w, **options)
    return made("nfnet", "NormFreeNet", cfg=config)


def vovnet(w: int, **options: Any) -> nn.Module:
    config = {
        "stem_chs": times(w, 8, 8, 16), "stage_conv_chs": times(w, 8, 8, 16, 16), "layer_per_block": 2,
        "stage_out_chs": times(w, 16, 16, 32, 32), "block_per_stage": [1, 1, 1, 1],
        "residual": True, "depthwise": False, "attn": "ese",
    }  # fmt: skip
    return made("vovnet", "VovNet", cfg=config | options)


def hrnet(w: int) -> nn.Module:
    def stage(branches: int, kind: str) -> dict[str, Any]:
        return {
            "num_modules": 1, "num_branches": branches, "block_type": kind, "num_blocks": (1,) * branches,
            "num_channels": times(w, *(24 * 2**i for i in range(branches))), "fuse_method": "SUM",
        }  # fmt: skip

    config = {"stem_width": 8 * w, "stage1": stage(1, "BOTTLENECK")}
    return made(
        "hrnet", "HighResolutionNet", cfg=config | {f"stage{n}": stage(n, "BASIC") for n in (2, 3, 4)}
    )


def hgnet(w: int, **options: Any) -> nn.Module:
    rows = {f"stage{n}": [16 * w, 8 * w, 16 * w, 1, n > 1, n == 3, 3, 2] for n in (1, 2, 3, 4)}
    config = {"stem_type": "v1", "stem_chs": list(times(w, 8, 8, 16)), **rows}
    return made("hgnet", "HighPerfGpuNet", cfg=config, head_hidden_size=32 * w, **options)


def ghost(family: str, name: str, w: int, **options: Any) -> nn.Module:
    rows = [
        [[3, 16, 16, 0, 1]],
        [[3, 48, 24, 0, 2], [3, 64, 24, 0, 1]],
        [[5, 64, 40, 0.25, 2], [5, 64, 40, 0.25, 1]],
    ]
    return made(family, name, cfgs=rows, width=float(w), **options)


def selecsls(w: int) -> nn.Module:
    from timm.models.selecsls import SelecSlsBlock

    rows = [(32, 0, 16 * w, 16 * w, True, 2), (16 * w, 16 * w, 16 * w, 32 * w, False, 1)]
    config = {
        "block": SelecSlsBlock, "features": rows, "head": [(32 * w, 24 * w, 3, 2)], "num_features": 24 * w,
        "feature_info": [],
    }  # fmt: skip
    return made("selecsls", "SelecSls", cfg=config)


def xception(w: int, **options: Any) -> nn.Module:
    rows = [
        {"in_chs": 64, "out_chs": 16 * w, "stride": 2},
        {"in_chs": 16 * w, "out_chs": 16 * w, "stride": 1},
        {"in_chs": 16 * w, "out_chs": times(w, 24, 24, 32), "stride": 1, "no_skip": True},
    ]
    return made("xception_aligned", "XceptionAligned", block_cfg=rows, norm_layer=nn.BatchNorm2d, **options)


def senet(w: int, block: str, groups: int) -> nn.Module:
    kind = getattr(import_module("timm.models.senet"), block)
    return made("senet", "SENet", block=kind, layers=[1, 1, 1, 1], groups=groups, reduction=4, inplanes=8 * w)


INVERTED = ("ds_r1_k3_s2_e1_c16_se0.25", "ir_r2_k3_s2_e4_c24_se0.25", "ir_r1_k5_s2_e4_c32_se0.25")
STAGES = {"depths": (1, 1, 1, 1)}


def transformers() -> dict[str, Any]:
    v = partial(vit, "vision_transformer", "VisionTransformer")
    swin_sizes = {"window_size": 4, "img_size": 32, "patch_size": 2, "depths": (2, 2)}
    return {
        "vit": v,
        "vit_head_dim_grows": partial(v, num_heads=3),
        "vit_layer_scale_qk_norm": partial(v, init_values=1e-2, qk_norm=True),
        "vit_registers_avg": partial(v, reg_tokens=2, class_token=False, global_pool="avg"),
        "vit_map_pooling": partial(v, global_pool="map", class_token=False),
        "vit_parallel": lambda w: v(w, block_fn=from_timm("vision_transformer", "ParallelThingsBlock")),
        "vit_res_post": lambda w: v(w, block_fn=from_timm("vision_transformer", "ResPostBlock"), init_values=1e-2),
        "vit_relpos_mlp": partial(vit, "vision_transformer_relpos", "VisionTransformerRelPos", rel_pos_dim=8),
        "vit_relpos_bias": partial(
            vit, "vision_transformer_relpos", "VisionTransformerRelPos", rel_pos_type="bias", init_values=1e-2
        ),
        "vit_sam": partial(
            vit, "vision_transformer_sam", "VisionTransformerSAM", use_rel_pos=True, window_size=2, neck_chans=0
        ),
        "naflexvit": naflex,
        "beit": partial(vit, "beit", "Beit", use_rel_pos_bias=True, init_values=0.1),
        "beit_swiglu": partial(vit, "beit", "Beit", swiglu_mlp=True, scale_mlp=True),
        "eva": partial(vit, "eva", "Eva", use_rot_pos_emb=True, swiglu_mlp=True),
        "eva_head_dim_grows": partial(vit, "eva", "Eva", use_rot_pos_emb=True, num_heads=3),
        "eva_qkv_apart": partial(vit, "eva", "Eva", qkv_fused=False, scale_attn_inner=True),
        "cait": partial(vit, "cait", "Cait", init_values=1e-2),
        "deit_distilled": partial(vit, "deit", "VisionTransformerDistilled"),
        "convit": partial(vit, "convit", "ConVit", embed_dim=8, local_up_to_layer=1),
        "xcit": partial(vit, "xcit", "Xcit", patch=16, side=64, use_pos_embed=False),
        "mixer": lambda w: made(
            "mlp_mixer", "MlpMixer", img_size=32, patch_size=8, num_blocks=2, embed_dim=24 * w, mlp_ratio=(0.5, 2.0)
        ),
        "resmlp": lambda w: made(
            "mlp_mixer", "MlpMixer", img_size=32, patch_size=8, num_blocks=2, embed_dim=24 * w,
            block_layer=from_timm("mlp_mixer", "ResBlock"), norm_layer=from_timm("mlp_mixer", "Affine"), mlp_ratio=2,
        ),
        "gmlp": lambda w: made(
            "mlp_mixer", "MlpMixer", img_size=32, patch_size=8, num_blocks=2, embed_dim=24 * w, mlp_ratio=4,
            block_layer=from_timm("mlp_mixer", "SpatialGatingBlock"), mlp_layer=from_timm_layers("GatedMlp"),
        ),
        "swin": lambda w: made(
            "swin_transformer", "SwinTransformer", embed_dim=16 * w, num_heads=times(w, 2, 4), **swin_sizes
        ),
        "swin_v2": lambda w: made(
            "swin_transformer_v2", "SwinTransformerV2", embed_dim=16 * w, num_heads=times(w, 2, 4), **swin_sizes
        ),
        "swin_v2_cr": lambda w: made(
            "swin_transformer_v2_cr", "SwinTransformerV2Cr", embed_dim=16 * w, num_heads=times(w, 2, 4), **swin_sizes
        ),
        "coat": lambda w: made(
            "coat", "CoaT", img_size=64, embed_dims=times(w, 16, 16, 16, 16), serial_depths=(1, 1, 1, 1),
            parallel_depth=1, num_heads=2 * w, mlp_ratios=(2, 2, 2, 2), crpe_window={3: w, 5: w}, patch_size=4,
        ),
        "crossvit": lambda w: made(
            "crossvit", "CrossVit", img_size=(32, 32), patch_size=(4, 8), embed_dim=times(w, 8, 16),
            depth=((1, 1, 0),), num_heads=times(w, 2, 2), mlp_ratio=(2, 2, 1),
        ),
        "davit": lambda w: made(
            "davit", "DaVit", depths=(1, 1), embed_dims=times(w, 16, 32), num_heads=times(w, 2, 4), window_size=4
        ),
        "efficientformer": lambda w: made(
            "efficientformer", "EfficientFormer", depths=(1, 1, 1, 2), embed_dims=times(w, 16, 16, 16, 32), num_vit=1,
            downsamples=(False, False, False, True),
        ),
        "efficientformer_v2": lambda w: made(
            "efficientformer_v2", "EfficientFormerV2", img_size=64, depths=(1, 1, 1, 2), num_vit=1,
            embed_dims=times(w, 8, 16, 16, 32), mlp_ratios=((2,), (2,), (2,), (2, 2)),
        ),
        "efficientvit_mit": lambda w: made(
            "efficientvit_mit", "EfficientVit", widths=times(w, 8, 16, 32, 32), depths=(1, 1, 1, 1), head_dim=8,
            head_widths=times(w, 32, 24),
        ),
        "efficientvit_msra": lambda w: made(
            "efficientvit_msra", "EfficientVitMsra", img_size=64, embed_dim=times(w, 16, 32), key_dim=times(w, 4, 4),
            depth=(1, 1), num_heads=(2, 2), window_size=(2, 2), down_ops=(("", 1), ("subsample", 2)),
        ),
        "focalnet": lambda w: made("focalnet", "FocalNet", embed_dim=16 * w, depths=(1, 1), focal_levels=(2, 2)),
        "gcvit": lambda w: made(
            "gcvit", "GlobalContextVit", img_size=64, embed_dim=16 * w, depths=(1, 2), num_heads=times(w, 2, 4),
            window_size=(4, 4), window_ratio=None,
        ),
        "hiera": lambda w: made(
            "hiera", "Hiera", img_size=(64, 64), embed_dim=16 * w, num_heads=2 * w, stages=(1, 1, 1, 1), q_pool=2,
            mask_unit_size=(4, 4),
        ),
        "hieradet_sam2": lambda w: made(
            "hieradet_sam2", "HieraDet", embed_dim=16 * w, num_heads=2 * w, stages=(1, 1, 2, 1), q_pool=2,
            window_spec=(4, 4, 4, 4), global_pos_size=(4, 4), global_att_blocks=(3,),
        ),
        "levit": lambda w: made(
            "levit", "Levit", img_size=64, embed_dim=times(w, 16, 24), key_dim=8, depth=(1, 1), num_heads=times(w, 2, 3)
        ),
        "coatnet": partial(hybrid, blocks=("C", "T")),
        "maxvit": partial(hybrid, blocks=("M", "M")),
        "maxxvit": partial(hybrid, blocks=("M", "M"), block_type="convnext"),
        "mvitv2": mvit,
        "mvitv2_cls": partial(mvit, use_cls_token=True, expand_attn=False),
        "nest": lambda w: made(
            "nest", "Nest", img_size=32, num_levels=2, embed_dims=times(w, 16, 32), num_heads=times(w, 2, 4), depths=(1, 1)
        ),
        "pit": lambda w: made(
            "pit", "PoolingVisionTransformer", img_size=32, patch_size=8, stride=4, base_dims=(8, 8, 8),
            depth=(1, 1, 1), heads=times(w, 2, 4, 8), mlp_ratio=2,
        ),
        "pvt_v2": lambda w: made(
            "pvt_v2", "PyramidVisionTransformerV2", embed_dims=times(w, 8, 16, 16, 16), num_heads=times(w, 1, 2, 2, 2),
            mlp_ratios=(2, 2, 2, 2), **STAGES,
        ),
        "tiny_vit": lambda w: made(
            "tiny_vit", "TinyVit", embed_dims=times(w, 8, 16, 16, 16), num_heads=times(w, 1, 2, 2, 2),
            window_sizes=(4, 4, 4, 2), **STAGES,
        ),
        "tnt": lambda w: made(
            "tnt", "TNT", img_size=32, patch_size=8, embed_dim=24 * w, inner_dim=8 * w, depth=1,
            num_heads_inner=2 * w, num_heads_outer=3 * w,
        ),
        "twins_pcpvt": lambda w: made("twins", "Twins", **pyramid(w)),
        "twins_svt": lambda w: made(
            "twins", "Twins", wss=(4, 4, 2, 2), block_cls=from_timm("twins", "Block"), **pyramid(w)
        ),
        "visformer": lambda w: made(
            "visformer", "Visformer", img_size=64, init_channels=8 * w, embed_dim=32 * w, depth=(1, 1, 1),
            num_heads=4 * w, mlp_ratio=2.0, group=4,
        ),
        "volo": lambda w: made(
            "volo", "VOLO", layers=(1, 1, 1, 1), img_size=64, stem_hidden_dim=8 * w, embed_dims=times(w, 8, 16, 16, 16),
            num_heads=times(w, 1, 2, 2, 2), mlp_ratio=2.0, use_aux_head=False,
        ),
        "sequencer": lambda w: made(
            "sequencer", "Sequencer2d", img_size=32, layers=(1, 1), patch_sizes=(4, 2), embed_dims=times(w, 8, 16),
            hidden_sizes=times(w, 4, 4), mlp_ratios=(2.0, 2.0),
        ),
        "bottleneck_transformer": lambda w: byo(w, "bottle", self_attn_layer="bottleneck", self_attn_kwargs={"num_heads": 2 * w, "dim_head": 8}),
        "halonet": lambda w: byo(
            w, "bottle", self_attn_layer="halo", self_attn_kwargs={"block_size": 4, "halo_size": 1, "num_heads": 2 * w, "dim_head": 8}
        ),
        "lambda_resnet": lambda w: byo(
            w, "bottle", self_attn_layer="lambda", self_attn_kwargs={"r": 3, "dim_head": 8 * w}
        ),
        "metaformer_pool": lambda w: made("metaformer", "MetaFormer", depths=(1, 1), dims=times(w, 16, 32)),
        "caformer": lambda w: made(
            "metaformer", "MetaFormer", depths=(1, 1), dims=times(w, 32, 64),
            token_mixers=[from_timm("metaformer", name) for name in ("SepConv", "Attention")],
            norm_layers=[from_timm("metaformer", name) for name in ("LayerNorm2dNoBias", "LayerNormNoBias")],
        ),
        "swiftformer": lambda w: made("swiftformer", "SwiftFormer", layers=[1, 1, 1, 1], embed_dims=times(w, 8, 16, 16, 16)),
        "edgenext": lambda w: made(
            "edgenext", "EdgeNeXt", dims=times(w, 8, 16, 24, 32), heads=times(w, 1, 2, 2, 2), **STAGES
        ),
        "iformer": lambda w: made(
            "iformer", "IFormer", dims=times(w, 8, 16, 32, 32), depths=(1, 1, 5, 2), attn_groups=(0, 0, 1, 0)
        ),
        "shvit": lambda w: made(
            "shvit", "SHViT", embed_dim=times(w, 16, 32), partial_dim=times(w, 4, 8), qk_dim=times(w, 4, 4), depth=(1, 1), types=("i", "s")
        ),
        "efficientvim": lambda w: made(
            "efficientvim", "EfficientViM", embed_dim=times(w, 16, 16, 32), depths=(1, 1, 1)
        ),
    }  # fmt: skip


def pyramid(w: int) -> dict[str, Any]:
    return {
        "img_size": 64, "embed_dims": times(w, 8, 16, 16, 16), "num_heads": times(w, 1, 2, 2, 2),
        "mlp_ratios": (2, 2, 2, 2), "depths": (1, 1, 1, 1),
    }  # fmt: skip


def from_timm(family: str, name: str) -> Any:
    return getattr(import_module(f"timm.models.{family}"), name)


def from_timm_layers(name: str) -> Any:
    return getattr(import_module("timm.layers"), name)


def convolutional() -> dict[str, Any]:
    efficient = partial(mobile, "efficientnet", "EfficientNet")
    return {
        "resnet": resnet,
        "resnet_basic_d": partial(resnet, block="resnet.BasicBlock", stem_type="deep", avg_down=True),
        "resnext": lambda w: resnet(w, cardinality=2 * w, base_width=128 // w),
        "resnext_groups_stay": partial(resnet, cardinality=2, base_width=32),
        "se_resnet": partial(resnet, block_args={"attn_layer": "se"}),
        "eca_resnet": partial(resnet, block_args={"attn_layer": "eca"}),
        "gc_resnet": partial(resnet, block_args={"attn_layer": "gc"}),
        "resnet_blur": lambda w: resnet(w, aa_layer=from_timm_layers("BlurPool2d")),
        "resnet_group_norm": lambda w: resnet(w, norm_layer=partial(from_timm_layers("GroupNorm"), num_groups=4)),
        "resnest": partial(
            resnet, block="resnest.ResNestBottleneck", stem_type="deep", avg_down=True,
            block_args={"radix": 2, "avd": True, "avd_first": False},
        ),
        "sknet": partial(resnet, block="sknet.SelectiveKernelBasic", block_args={"sk_kwargs": {"split_input": True}}),
        "res2net": partial(resnet, block="res2net.Bottle2neck", base_width=32, block_args={"scale": 4}),
        "resnetv2": lambda w: made(
            "resnetv2", "ResNetV2", layers=[1, 1], channels=times(w, 32, 64), stem_chs=16 * w,
            norm_layer=partial(from_timm_layers("GroupNormAct"), num_groups=4),
        ),
        "resnetv2_batch_norm": lambda w: made(
            "resnetv2", "ResNetV2", layers=[1, 1], channels=times(w, 32, 64), stem_chs=16 * w, conv_layer=from_timm_layers("create_conv2d"),
            norm_layer=from_timm_layers("BatchNormAct2d"),
        ),
        "senet": lambda w: senet(w, "SEResNetBlock", 1),
        "seresnext": lambda w: senet(w, "SEResNeXtBottleneck", 4 * w),
        "convnext": lambda w: made("convnext", "ConvNeXt", dims=times(w, 8, 16, 16, 32), **STAGES),
        "convnext_v2": lambda w: made(
            "convnext", "ConvNeXt", dims=times(w, 8, 16, 16, 32), use_grn=True, ls_init_value=None, **STAGES
        ),
        "convnext_conv_mlp": lambda w: made("convnext", "ConvNeXt", dims=times(w, 8, 16, 16, 32), conv_mlp=True, **STAGES),
        "inception_next": lambda w: made("inception_next", "MetaNeXt", depths=(1, 1), dims=times(w, 32, 64), mlp_ratios=(2, 2)),
        "convmixer": lambda w: made("convmixer", "ConvMixer", dim=16 * w, depth=2, kernel_size=3, patch_size=4),
        "cspnet": partial(csp, expand_ratio=2.0, bottle_ratio=0.5, cross_linear=True),
        "cs3": partial(csp, stage_type="cs3", bottle_ratio=1.0, block_ratio=0.5, attn_layer="se"),
        "darknet": partial(csp, stage_type="dark", block_type="dark", bottle_ratio=0.5),
        "cspnext": lambda w: made("cspnext", "CspNext", depths=(1, 1, 1, 1), channels=times(w, 16, 16, 32, 32)),
        "densenet": lambda w: made("densenet", "DenseNet", growth_rate=8 * w, block_config=(2, 2), bn_size=2),
        "dla": lambda w: made(
            "dla", "DLA", levels=[1, 1, 1, 2, 1, 1], channels=times(w, 8, 8, 16, 16, 16, 32), block=from_timm("dla", "DlaBasic")
        ),
        "dpn": lambda w: made(
            "dpn", "DPN", k_sec=(1, 1, 1, 1), inc_sec=times(w, 8, 8, 8, 8), k_r=16 * w, groups=4 * w, num_init_features=8 * w
        ),
        "efficientnet": partial(efficient, blocks=INVERTED),
        "efficientnet_v2": partial(
            efficient, blocks=("cn_r1_k3_s1_e1_c16_skip", "er_r2_k3_s2_e4_c24", "ir_r1_k3_s2_e4_c32_se0.25")
        ),
        "mixnet": partial(efficient, blocks=("ds_r1_k3_s1_e1_c16", "ir_r1_k3.5_a1.1_p1.1_s2_e4_c24", *INVERTED[2:])),
        "efficientnet_edge": partial(efficient, blocks=("er_r1_k3_s1_e4_c24_fc24_noskip", *INVERTED[1:])),
        "mobilenet_v2": partial(efficient, blocks=("ds_r1_k3_s1_c16", "ir_r2_k3_s2_e6_c24", "ir_r1_k3_s2_e6_c32")),
        "mobilenet_v3": partial(mobile, "mobilenetv3", "MobileNetV3", blocks=(*INVERTED, "cn_r1_k1_s1_c48")),
        "mobilenet_v4": partial(
            mobile, "mobilenetv3", "MobileNetV3",
            blocks=("cn_r1_k3_s2_e1_c16", "uir_r1_a3_k5_s2_e4_c24", "mqa_r1_k3_h4_s1_v2_d16_c24", "cn_r1_k1_s1_c48"),
        ),
        "fasternet": lambda w: made("fasternet", "FasterNet", embed_dim=16 * w, feature_dim=32 * w, **STAGES),
        "fastvit": lambda w: made(
            "fastvit", "FastVit", layers=(1, 1, 1, 1), embed_dims=times(w, 8, 16, 16, 32), mlp_ratios=(2, 2, 2, 2)
        ),
        "mobileone": partial(byo, kind="one"),
        "repvgg": partial(byo, kind="rep"),
        "gernet": partial(byo, kind="bottle", br=0.25, attn_layer="se"),
        "regnet_by_blocks": partial(byo, kind="bottle", gs=8, br=1.0),
        "ghostnet": partial(ghost, "ghostnet", "GhostNet"),
        "ghostnet_v2": partial(ghost, "ghostnet", "GhostNet", version="v2"),
        "repghost": partial(ghost, "repghost", "RepGhostNet"),
        "hgnet": hgnet,
        "hgnet_v2": lambda w: hgnet(w, use_lab=True),
        "hrnet": hrnet,
        "lcnet_v2": lambda w: made("lcnetv2", "LCNetV2", scale=0.25 * w, depths=(1, 1, 2, 1), head_hidden_size=32 * w),
        "mambaout": lambda w: made("mambaout", "MambaOut", depths=(1, 1), dims=times(w, 24, 48)),
        "nfnet": partial(nfnet, group_size=8, extra_conv=True, attn_layer="se", attn_kwargs={"rd_ratio": 0.5}, act_layer="gelu"),
        "nf_resnet": partial(nfnet, act_layer="relu", skipinit=True),
        "rdnet": lambda w: made(
            "rdnet", "RDNet", growth_rates=times(w, 8, 16, 16), num_blocks_list=(1, 2, 1), num_init_features=16 * w,
            block_type=("Block", "Block", "BlockESE"), is_downsample_block=(None, True, True), transition_compression_ratio=1.0,
        ),
        "regnetx": partial(regnet, group_size=8),
        "regnety": partial(regnet, group_size=8, se_ratio=0.25),
        "regnetz": partial(regnet, group_size=8, linear_out=True, bottle_ratio=4.0, downsample=None, se_ratio=0.25),
        "repvit": lambda w: made("repvit", "RepVit", embed_dim=times(w, 16, 32), depth=(1, 2), img_size=32),
        "rexnet": lambda w: made("rexnet", "RexNet", initial_chs=8 * w, final_chs=180 * w, depth_mult=0.5, ch_div=4 * w),
        "selecsls": selecsls,
        "starnet": lambda w: made("starnet", "StarNet", base_dim=8 * w, depths=[1, 1, 1, 1], mlp_ratio=2),
        "tresnet": lambda w: made("tresnet", "TResNet", layers=[1, 1, 1, 1], width_factor=w / 4),
        "vgg": lambda w: made("vgg", "VGG", cfg=[8 * w, "M", 16 * w, "M"], mlp_ratio=w / 128),
        "vgg_bn": lambda w: made("vgg", "VGG", cfg=[8 * w, "M", 16 * w, "M"], mlp_ratio=w / 128, norm_layer=nn.BatchNorm2d),
        "vovnet": vovnet,
        "vovnet_depthwise": partial(vovnet, depthwise=True),
        "xception": xception,
        "xception_preact": partial(xception, preact=True),
        "lowformer": lambda w: made(
            "lowformer", "LowFormer", width_list=times(w, 8, 16, 32), depth_list=(0, 1, 1), head_widths=times(w, 32, 24)
        ),
        "cpubone": lambda w: made(
            "cpubone", "CPUBone", width_list=times(w, 8, 16, 32), depth_list=(0, 1, 1), head_widths=times(w, 32, 24)
        ),
    }  # fmt: skip


# Those that see a single place of 32 pixels at their end, or run on no fewer than 64.
LARGE = {
    "xcit", "coat", "efficientformer_v2", "efficientvit_msra", "gcvit", "hiera", "hieradet_sam2", "levit", "visformer",
    "volo", "twins_pcpvt", "twins_svt", "pvt_v2", "shvit", "gc_resnet", "rexnet",
}  # fmt: skip
SIDES = dict.fromkeys(LARGE, 64) | {"efficientformer": 56, "efficientvim": 128}


def cases() -> Iterator[Case]:
    import timm.models  # noqa: F401  (that it is there)

    why = {
        "eva_head_dim_grows": ROTARY,
        "focalnet": UNEQUAL,
        "dpn": UNEQUAL,
        "eca_resnet": NEIGHBOURS,
        "shvit": MIXED,
    }
    for name, make in (transformers() | convolutional()).items():
        yield Case(name, make, images(SIDES.get(name, 32)), why.get(name, ""))
