"""Well-known architectures as ONNX files, with seeded random weights through which signals live.

Needs what the extra `export` installs.
"""

import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from onnxcompress.drafts import replacing

OPSET, DYNAMO_OPSET = 17, 18
SMALL_SIZES = (96, 128)
"""Heights and widths to try before an architecture's own."""

TORCHVISION = """
squeezenet1_1 googlenet shufflenet_v2_x1_0 mobilenet_v2 mobilenet_v3_large mnasnet0_5 resnet50 vgg11_bn
deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large r3d_18
"""
TIMM = """
resnet18 resnet50_gn resnetv2_18 seresnet18 ecaresnet26t skresnet18 resnest14d res2net50_14w_8s resnext26ts
regnety_002 nf_resnet26 botnet26t_256 densenet121 dla46_c dpn48b hrnet_w18_small mobilenetv1_100
mobilenetv4_conv_small mobileone_s0 repvgg_a0 repvit_m0_9 fastvit_t8 ghostnet_050 ghostnetv2_100
efficientnet_b0 tf_efficientnetv2_b0 mixnet_s tinynet_e lcnet_050 rexnet_100 inception_v3 ese_vovnet19b_slim
cspresnet50 cs3darknet_s darknet17 hgnetv2_b0 convnext_atto convnextv2_atto convmixer_768_32
inception_next_atto starnet_s1 shvit_s1 edgenext_xx_small mobilevit_xxs mobilevitv2_050 coatnet_pico_rw_224
efficientformer_l1 levit_128s poolformer_s12 pvt_v2_b0 swin_tiny_patch4_window7_224 vit_tiny_patch16_224
"""
DYNAMO = """
torchvision/squeezenet1_1 torchvision/mobilenet_v3_large timm/resnet18 timm/mobilenetv1_100 timm/ghostnet_050
timm/convnext_atto
"""
"""Exported by torch's newer exporter as well."""


@dataclass(frozen=True)
class Architecture:
    """One network to export: `library` is ``torchvision`` or ``timm``."""

    library: str
    name: str
    dynamo: bool = False

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.library}-{self.name}{'-dynamo' if self.dynamo else ''}.onnx"


ARCHITECTURES = (
    *(Architecture("torchvision", name) for name in TORCHVISION.split()),
    *(Architecture("timm", name) for name in TIMM.split()),
    *(Architecture(*entry.split("/"), dynamo=True) for entry in DYNAMO.split()),
)


def export(architecture: Architecture, path: Path) -> None:
    """Write a network's file, whole or not at all."""
    torch.manual_seed(zlib.crc32(architecture.name.encode()))
    model, image = (_torchvision if architecture.library == "torchvision" else _timm)(architecture.name)
    _enliven(model, image)
    with replacing(path) as draft, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (image,),
            str(draft),
            dynamo=architecture.dynamo,
            opset_version=DYNAMO_OPSET if architecture.dynamo else OPSET,
            external_data=False,
            verbose=False,
            input_names=["input"],
            output_names=["output"],
        )


def _torchvision(name: str) -> tuple[nn.Module, torch.Tensor]:
    builder = torchvision.models.get_model_builder(name)
    if name.startswith(("deeplabv3", "lraspp")):
        return _Segments(builder(weights=None, weights_backbone=None)).eval(), torch.randn(1, 3, 96, 96)
    # GoogLeNet would draw its weights one by one.
    model = builder(weights=None, **({"init_weights": False} if name == "googlenet" else {})).eval()
    if name.startswith("vgg"):  # nine in ten of its weights are here, and nothing else depends on them
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 1000)
    return model, torch.randn(1, 3, 8, 64, 64) if name == "r3d_18" else torch.randn(1, 3, 96, 96)


def _timm(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network and one image of the smallest size that it takes."""
    model = timm.create_model(name).eval()
    own = model.pretrained_cfg["input_size"][-1]
    for size in () if model.pretrained_cfg.get("fixed_input_size") else SMALL_SIZES:
        image = torch.randn(1, 3, size, size)
        try:
            with torch.no_grad():
                model(image)
            return model, image
        except (AssertionError, RuntimeError):  # too small, or of no whole number of windows
            continue
    return model, torch.randn(1, 3, own, own)


class _Segments(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model(image)["out"]


@torch.no_grad()
def _enliven(model: nn.Module, image: torch.Tensor) -> None:
    """Give what initialises to nothing a value, and BatchNorm statistics near those of its input.

    Fresh networks multiply whole branches by zero or nearly so (layer scales, the last norm of a block): an
    error there would not reach the output.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for parameter in model.parameters():
        if parameter.numel() and parameter.max() - parameter.min() < 1e-6:
            near = 0.0 if parameter.flatten()[0] == 0 and parameter.dim() == 1 else 1.0
            parameter.copy_(near + 0.4 * (torch.rand_like(parameter) - 0.5))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(torch.cat([image, torch.randn(3, *image.shape[1:])]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        norm.running_mean += 0.4 * (torch.rand_like(norm.running_mean) - 0.5) * norm.running_var.sqrt()
        norm.running_var *= 0.5 + 1.5 * torch.rand_like(norm.running_var)
