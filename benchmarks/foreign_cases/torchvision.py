"""torchvision's models, and the modules of torchvision.ops that hold parameters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from foreign_cases import Case, draw, images, of


def times(w: int, *sizes: int) -> list[int]:
    return [w * size for size in sizes]


def cases() -> Iterator[Case]:
    from torchvision import models, ops
    from torchvision.models import (
        convnext,
        densenet,
        efficientnet,
        maxvit,
        mobilenetv2,
        mobilenetv3,
        regnet,
        resnet,
        segmentation,
        swin_transformer,
        vision_transformer,
    )  # fmt: skip
    from torchvision.models.optical_flow import raft

    s3d = import_module("torchvision.models.video.s3d")  # whose name a function there bears, too
    from torchvision.models.video import mvit
    from torchvision.models.video import swin_transformer as video_swin

    def mobilenet_v3(w: int) -> nn.Module:
        rows = [
            mobilenetv3.InvertedResidualConfig(8, 3, 16, 8, True, "RE", 2, 1, w),
            mobilenetv3.InvertedResidualConfig(8, 3, 32, 16, True, "HS", 2, 1, w),
        ]
        return mobilenetv3.MobileNetV3(rows, last_channel=32 * w, num_classes=7, dropout=0.0)

    def efficient(w: int) -> nn.Module:
        rows = [
            efficientnet.MBConvConfig(1, 3, 1, 8, 8, 1, width_mult=w),
            efficientnet.MBConvConfig(4, 3, 2, 8, 16, 1, width_mult=w),
        ]
        return efficientnet.EfficientNet(rows, dropout=0.2, num_classes=7, last_channel=32 * w)

    def efficient_v2(w: int) -> nn.Module:
        rows = [
            efficientnet.FusedMBConvConfig(2, 3, 1, 8 * w, 8 * w, 1),
            efficientnet.MBConvConfig(4, 3, 2, 8 * w, 16 * w, 1),
        ]
        return efficientnet.EfficientNet(rows, dropout=0.2, num_classes=7, last_channel=32 * w)

    def regular(w: int, **options: Any) -> nn.Module:
        params = regnet.BlockParams(
            [1, 2], times(w, 16, 32), [8, 8], [1.0, 1.0], [2, 2], options.pop("se", None)
        )
        return regnet.RegNet(params, num_classes=7, stem_width=8 * w)

    def convolutional_next(w: int) -> nn.Module:
        rows = [convnext.CNBlockConfig(16 * w, 32 * w, 1), convnext.CNBlockConfig(32 * w, None, 1)]
        return convnext.ConvNeXt(rows, num_classes=7)

    def swin(w: int, **options: Any) -> nn.Module:
        return models.SwinTransformer(
            [2, 2], 16 * w, [1, 1], times(w, 2, 4), [4, 4], num_classes=7, **options
        )

    def vit(w: int) -> nn.Module:
        return vision_transformer.VisionTransformer(
            32, 8, 2, 3 * w, 24 * w, 48 * w, dropout=0.1, num_classes=7
        )

    def max_vit(w: int) -> nn.Module:
        return maxvit.MaxVit((64, 64), 16 * w, 4, times(w, 16, 16), [1, 1], 8, 0.0, num_classes=7)

    def shuffle(w: int) -> nn.Module:
        return models.ShuffleNetV2([1, 1, 1], times(w, 16, 16, 32, 32, 64), num_classes=7)

    def segmenter(w: int, head: type[nn.Module], **options: Any) -> nn.Module:
        body = nn.Sequential(
            OrderedDict(a=nn.Conv2d(3, 16 * w, 3, 2, 1), b=nn.ReLU(), c=nn.Conv2d(16 * w, 32 * w, 3, 2, 1))
        )
        features = models._utils.IntermediateLayerGetter(body, {"c": "out"})
        return segmentation.fcn.FCN(features, head(32 * w, 5, **options))

    def bottlenecks(w: int) -> nn.Module:
        return resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=7, width_per_group=16 * w)

    def resnext(w: int) -> nn.Module:
        return resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=7, groups=2 * w, width_per_group=8)

    yield from of(
        {
            "resnet_inner": bottlenecks,
            "resnext_inner": resnext,
            "densenet": lambda w: densenet.DenseNet(8 * w, (2, 2), 16 * w, bn_size=2, num_classes=7),
            "mobilenet_v2": lambda w: mobilenetv2.MobileNetV2(
                num_classes=7, width_mult=w, inverted_residual_setting=[[1, 8, 1, 1], [4, 16, 2, 2]]
            ),
            "mobilenet_v3": mobilenet_v3,
            "shufflenet_v2": shuffle,
            "efficientnet": efficient,
            "efficientnet_v2": efficient_v2,
            "regnet_x": regular,
            "regnet_y": partial(regular, se=0.25),
            "convnext": convolutional_next,
            "swin": partial(swin, block=swin_transformer.SwinTransformerBlock),
            "swin_v2": partial(
                swin, block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2
            ),
            "vit": vit,
            "fcn": partial(segmenter, head=segmentation.fcn.FCNHead),
            "deeplab_v3": lambda w: segmenter(w, head=segmentation.deeplabv3.DeepLabHead, atrous_rates=(2, 3)),
            "ops.Conv2dNormActivation": lambda w: nn.Sequential(
                ops.Conv2dNormActivation(3, 8 * w), ops.Conv2dNormActivation(8 * w, 8 * w, groups=8 * w)
            ),
            "ops.SqueezeExcitation": lambda w: nn.Sequential(
                nn.Conv2d(3, 16 * w, 1), ops.SqueezeExcitation(16 * w, 4 * w), nn.Conv2d(16 * w, 5, 1)
            ),
            "ops.FeaturePyramidNetwork": lambda w: Pyramid(ops.FeaturePyramidNetwork(times(w, 8, 16), 12 * w), w),
        },
        images(32),
    )  # fmt: skip
    yield from of(
        {"maxvit": max_vit, "mnasnet": lambda w: models.MNASNet(float(w), num_classes=7, dropout=0.0)},
        images(64),
    )
    yield from of(
        {"ops.MLP": lambda w: ops.MLP(6, [*times(w, 8, 8), 5], norm_layer=nn.LayerNorm)},
        draw(16, 6),
    )  # fmt: skip
    yield from of(
        {
            "video.mvit": lambda w: mvit.MViT(
                (16, 16), 4,
                [mvit.MSBlockConfig(2 * w, 16 * w, 16 * w, [3, 3, 3], [3, 3, 3], stride, [1, 1, 1]) for stride in ([1, 1, 1], [1, 2, 2])],
                residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True, num_classes=7,
                patch_embed_stride=(2, 4, 4),
            ),
            "video.swin": lambda w: video_swin.SwinTransformer3d(
                [2, 2, 2], 16 * w, [1, 1], times(w, 2, 4), [2, 2, 2], num_classes=7
            ),
            "video.s3d_stem": lambda w: nn.Sequential(
                s3d.TemporalSeparableConv(3, 8 * w, 3, 2, 1, nn.BatchNorm3d),
                s3d.SepInceptionBlock3D(8 * w, *times(w, 4, 4, 8, 4, 8, 4), nn.BatchNorm3d),
            ),
        },
        draw(2, 3, 4, 16, 16),
    )  # fmt: skip
    yield Case(
        "raft.UpdateBlock",
        lambda w: raft.UpdateBlock(
            motion_encoder=raft.MotionEncoder(in_channels_corr=6, corr_layers=(8 * w, 8 * w), flow_layers=(8 * w, 8 * w), out_channels=10),
            recurrent_block=raft.RecurrentBlock(input_size=14, hidden_size=4),
            flow_head=raft.FlowHead(in_channels=4, hidden_size=8 * w),
        ),
        (draw(2, 4, 8, 8), draw(2, 4, 8, 8), draw(2, 6, 8, 8), draw(2, 2, 8, 8)),
    )  # fmt: skip


class Pyramid(nn.Module):
    """Two maps of features, put through a pyramid."""

    def __init__(self, pyramid: nn.Module, w: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8 * w, 3, 2, 1), nn.Conv2d(8 * w, 16 * w, 3, 2, 1)
        self.pyramid, self.head = pyramid, nn.Conv2d(12 * w, 5, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.first(x)
        maps = self.pyramid(OrderedDict(fine=fine, coarse=self.second(fine)))
        return [self.head(m) for m in maps.values()]
