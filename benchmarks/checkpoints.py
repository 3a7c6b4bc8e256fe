"""Load what other projects write: files with their key names, made here from small models.

    python benchmarks/checkpoints.py --out docs/checkpoints.md

Each file is made from the state dict of a model by the renaming that its project does, with the
other things that such a file holds. It is loaded into a fresh model by names, by structure, and
with what the project's reader has to say; where a loading is refused, the line that the error
writes is done. Every tensor that was loaded is compared with the one it was made from.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import shutil
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import distributed, nn
from torch.distributed.tensor import distribute_tensor
from torchvision.models import ResNet, SwinTransformer, resnet18
from torchvision.models.resnet import Bottleneck

import torchgraft
from torchgraft import load_report, load_weights, pipe, read_checkpoint
from torchgraft.alignment.load.checkpoints import Checkpoint
from torchgraft.errors import GraftError
from torchgraft.transform import Transform

State = dict[str, torch.Tensor]


# Models -----------------------------------------------------------------------------------------


def vit(**options: object) -> nn.Module:
    small = {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 0}
    return VisionTransformer(**{**small, **options})


def swin() -> nn.Module:
    small = {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16, "num_classes": 6, "img_size": 64}
    return timm.create_model("swin_tiny_patch4_window7_224", window_size=4, **small)


def torch_swin() -> nn.Module:
    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=6)


def beit() -> nn.Module:
    small = {"depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 6, "img_size": 32, "patch_size": 8}
    return timm.create_model("beit_base_patch16_224", **small)


def clip() -> nn.Module:
    return vit(pre_norm=True, norm_layer=nn.LayerNorm, num_classes=20, qkv_bias=True)


def bottlenecks() -> nn.Module:
    return ResNet(Bottleneck, [2, 2, 2, 2], num_classes=6)


def drawn(make: Callable[[], nn.Module], seed: int = 0) -> State:
    torch.manual_seed(seed)
    state = make().state_dict()
    return {k: torch.rand_like(t) + 0.1 if t.is_floating_point() else t.clone() for k, t in state.items()}


# Names ------------------------------------------------------------------------------------------


def under(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def renamed(state: State, *rules: tuple[str, str]) -> State:
    def new(key: str) -> str:
        for old, text in rules:
            key = re.sub(old, text, key)
        return key

    return {new(key): tensor for key, tensor in state.items()}


def headless(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if "fc." not in key}


def extra(**shapes: tuple[int, ...]) -> State:
    return {key.replace("__", "."): torch.rand(shape) for key, shape in shapes.items()}


NUMBERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def numbered(state: State) -> State:
    """Rename a torchvision resnet as nn.Sequential(*children) does."""
    found = {}
    for key, tensor in state.items():
        first, _, rest = key.partition(".")
        if first in NUMBERS:
            found[f"{NUMBERS[first]}.{rest}"] = tensor
    return found


def chunked(state: State) -> State:
    return renamed(state, (r"^blocks\.([01])\.", r"blocks.0.\1."), (r"^blocks\.([23])\.", r"blocks.1.\1."))


def microsoft(state: State) -> State:
    """Rename a timm Swin as in Microsoft's repository, where a stage ends with its downsampling."""
    found = {
        re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): tensor
        for key, tensor in state.items()
    }
    found = renamed(found, (r"^head\.fc\.", "head."))
    index = torch.zeros(16, 16, dtype=torch.long)
    tables = {key.replace("bias_table", "index"): index for key in found if key.endswith("bias_table")}
    return {**found, **tables, "layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16)}


def unilm(state: State) -> State:
    index = {k.replace("bias_table", "index"): torch.zeros(17, 17) for k in state if k.endswith("bias_table")}
    return {**state, **index}


def openai(state: State) -> State:
    found = renamed(
        state,
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^cls_token$", "class_embedding"),
        (r"^pos_embed$", "positional_embedding"),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.attn\.qkv\.(weight|bias)", r".attn.in_proj_\1"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    )
    found["class_embedding"] = found["class_embedding"].reshape(-1)
    found["positional_embedding"] = found["positional_embedding"][0]
    found["proj"] = found.pop("head.weight").T.contiguous()
    found.pop("head.bias")
    return found


def whole_clip(state: State) -> State:
    """Put a text tower beside the image tower."""
    text = {}
    for layer in range(4):
        at = f"transformer.resblocks.{layer}."
        text |= {f"{at}attn.in_proj_weight": torch.rand(96, 32), f"{at}attn.in_proj_bias": torch.rand(96)}
        text |= {f"{at}attn.out_proj.weight": torch.rand(32, 32), f"{at}attn.out_proj.bias": torch.rand(32)}
        text |= {f"{at}ln_{i}.{name}": torch.rand(32) for i in (1, 2) for name in ("weight", "bias")}
        text |= {f"{at}mlp.c_fc.weight": torch.rand(128, 32), f"{at}mlp.c_fc.bias": torch.rand(128)}
        text |= {f"{at}mlp.c_proj.weight": torch.rand(32, 128), f"{at}mlp.c_proj.bias": torch.rand(32)}
    more = extra(
        token_embedding__weight=(99, 32), ln_final__weight=(32,), ln_final__bias=(32,), logit_scale=()
    )
    return {**under(openai(state), "visual."), **text, **more}


def detectron(state: State) -> State:
    return renamed(
        {key: tensor for key, tensor in state.items() if "num_batches" not in key and "fc." not in key},
        (r"^conv1\.", "stem.conv1."),
        (r"^bn1\.", "stem.conv1.norm."),
        (r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}"),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
    )


def mmpretrain(state: State) -> State:
    return renamed(
        state,
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^blocks\.", "layers."),
        (r"\.norm([12])\.", r".ln\1."),
        (r"^norm\.", "ln1."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    )


def peft(state: State) -> State:
    found = under(renamed(state, (r"\.attn\.qkv\.", ".attn.qkv.base_layer.")), "base_model.model.")
    for layer in range(4):
        at = f"base_model.model.blocks.{layer}.attn.qkv.lora_"
        found |= {f"{at}A.default.weight": torch.rand(4, 48), f"{at}B.default.weight": torch.rand(144, 4)}
    return found


def mae(state: State) -> State:
    return {
        **state,
        **extra(mask_token=(1, 1, 32), decoder_pos_embed=(1, 17, 32), decoder_embed__weight=(32, 48)),
        **under(drawn(lambda: vit(depth=1, embed_dim=32, num_heads=2).blocks, 3), "decoder_blocks."),
        **extra(decoder_norm__weight=(32,), decoder_pred__weight=(192, 32), decoder_pred__bias=(192,)),
    }


def heads(prefix: str) -> State:
    return {f"{prefix}0.weight": torch.rand(64, 64), f"{prefix}2.weight": torch.rand(16, 64)}


# Files ------------------------------------------------------------------------------------------

ARGS = argparse.Namespace(lr=0.1, output_dir=Path("out"), model="small")
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)}},
    "param_groups": [{"lr": 0.1}],
}


def saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def as_pickle(value: object, path: Path, protocol: int = 2) -> Path:
    path = path.with_suffix(".pkl")
    with path.open("wb") as file:
        pickle.dump(value, file, protocol=protocol)
    return path


def arrays(state: State) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in state.items()}


def as_npz(state: State, path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays(state))
    return path.with_suffix(".npz")


def as_folder(state: State, path: Path) -> Path:
    distributed.checkpoint.save({"model": state}, checkpoint_id=path.with_suffix(""), no_dist=True)
    return path.with_suffix("")


def spread(state: State) -> dict[str, object]:
    mesh = distributed.init_device_mesh("cpu", (1,))
    return {key: distribute_tensor(tensor, mesh) for key, tensor in state.items()}


def quantised(state: State) -> dict[str, object]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = vit()
    model.load_state_dict(state)
    quantize_(model, Int8WeightOnlyConfig())
    return model.state_dict()


@attrs.frozen
class Case:
    """A file of a project.

    Args:
        project: whose names it has.
        make: builds the model that it is from, and the one that it goes into.
        write: writes the file from a state dict, and one of a momentum or an average.
        said: what a reader of that project says besides, if anything.
        into: builds the model that it goes into, where that is another one; what has other
            names or shapes there is compared by what both models give.
        close: values may differ by rounding.
        raw: without a word, the other state dict is what is loaded.
    """

    project: str
    make: Callable[[], nn.Module]
    write: Callable[[State, State, Path], Path]
    said: dict[str, object] = attrs.field(factory=dict)
    into: Callable[[], nn.Module] | None = None
    close: float = 0.0
    raw: bool = False


def cases() -> Iterator[Case]:
    """Yield the files."""
    yield Case(
        "DINO, backbone of student and teacher",
        vit,
        lambda s, t, p: saved(
            {
                "student": {**under(t, "module.backbone."), **heads("module.head.mlp.")},
                "teacher": {**under(s, "backbone."), **heads("head.mlp.")},
                "optimizer": OPTIMIZER,
                "args": ARGS,
                "dino_loss": {"center": torch.rand(1, 9)},
                "epoch": 3,
            },
            p,
        ),
        {"ema": True},
    )
    dino = lambda: vit(init_values=0.1)  # noqa: E731
    yield Case("DINOv2", dino, lambda s, t, p: saved({**s, **extra(mask_token=(1, 48))}, p))
    yield Case("DINOv2, chunked", dino, lambda s, t, p: saved({**chunked(s), **extra(mask_token=(1, 48))}, p))
    yield Case("MAE, pre-trained", vit, lambda s, t, p: saved({"model": mae(s), "args": ARGS, "epoch": 3}, p))
    yield Case(
        "MAE, fine-tuned",
        lambda: vit(num_classes=6, global_pool="avg"),
        lambda s, t, p: saved(
            {"model": s, "optimizer": OPTIMIZER, "args": ARGS, "scaler": {"scale": 2.0}}, p
        ),
    )
    yield Case(
        "MAE, for images of another size",
        vit,
        lambda s, t, p: saved({"model": s, "args": ARGS}, p),
        {"resize": True},
        into=lambda: vit(img_size=48),
    )
    yield Case(
        "MoCo v2",
        resnet18,
        lambda s, t, p: saved(
            {
                "arch": "resnet18",
                "state_dict": {
                    **under(headless(s), "module.encoder_q."),
                    **heads("module.encoder_q.fc."),
                    **under(headless(t), "module.encoder_k."),
                    **heads("module.encoder_k.fc."),
                    **extra(module__queue=(16, 32)),
                },
                "optimizer": OPTIMIZER,
            },
            p,
        ),
        {"prefix": "module.encoder_q."},
    )
    yield Case(
        "MoCo v3",
        vit,
        lambda s, t, p: saved(
            {
                "state_dict": {
                    **under(s, "module.base_encoder."),
                    **heads("module.base_encoder.head."),
                    **under(t, "module.momentum_encoder."),
                    **heads("module.momentum_encoder.head."),
                    **heads("module.predictor."),
                },
                "optimizer": OPTIMIZER,
            },
            p,
        ),
        {"prefix": "module.base_encoder."},
    )
    yield Case(
        "BYOL",
        resnet18,
        lambda s, t, p: saved(
            {
                **under(s, "online_encoder.net."),
                **heads("online_encoder.projector."),
                **under(t, "target_encoder.net."),
                **heads("target_encoder.projector."),
                **heads("online_predictor."),
            },
            p,
        ),
        {"prefix": "online_encoder.net."},
    )
    yield Case(
        "SimMIM",
        vit,
        lambda s, t, p: saved(
            {
                "model": {
                    **under(s, "encoder."),
                    **extra(encoder__mask_token=(1, 1, 48), decoder__0__weight=(3, 48, 1, 1)),
                }
            },
            p,
        ),
    )
    yield Case(
        "SwAV",
        resnet18,
        lambda s, t, p: saved(
            {
                **under(headless(s), "module."),
                **heads("module.projection_head."),
                **extra(module__prototypes__weight=(30, 16)),
            },
            p,
        ),
    )
    yield Case("BEiT", beit, lambda s, t, p: saved({"model": unilm(s)}, p))
    yield Case(
        "CLIP, image tower and text tower",
        clip,
        lambda s, t, p: saved(whole_clip(s), p),
        {"by": "structure", "prefix": "visual."},
    )
    yield Case(
        "OpenCLIP, of several replicas",
        clip,
        lambda s, t, p: saved({"epoch": 3, "state_dict": under(whole_clip(s), "module.")}, p),
        {"by": "structure", "prefix": "module.visual."},
    )
    yield from towers()
    yield Case("Swin of Microsoft", swin, lambda s, t, p: saved({"model": microsoft(s)}, p))
    yield Case(
        "detectron2, .pkl of arrays",
        bottlenecks,
        lambda s, t, p: as_pickle({"model": arrays(detectron(s)), "__author__": "me"}, p),
    )
    yield Case(
        "detectron2, .pkl of a later protocol",
        bottlenecks,
        lambda s, t, p: as_pickle({"model": arrays(detectron(s)), "__author__": "me"}, p, 4),
    )
    meta = {"meta": {"epoch": 3}, "optimizer": OPTIMIZER}
    yield Case(
        "mmpretrain, ResNet",
        resnet18,
        lambda s, t, p: saved(
            {**meta, "state_dict": renamed(under(s, "backbone."), (r"^backbone\.fc", "head.fc"))}, p
        ),
    )
    yield Case(
        "mmpretrain, ViT",
        vit,
        lambda s, t, p: saved(
            {
                **meta,
                "state_dict": {
                    **under(mmpretrain(s), "backbone."),
                    **extra(head__layers__head__weight=(6, 48)),
                },
            },
            p,
        ),
    )
    for project, rest in (
        ("mmseg", ("decode_head.", "auxiliary_head.")),
        ("mmdet", ("neck.lateral_convs.", "rpn_head.", "roi_head.bbox_head.")),
    ):
        yield Case(
            project,
            resnet18,
            lambda s, t, p, rest=rest: saved(
                {
                    **meta,
                    "state_dict": {
                        **under(headless(s), "backbone."),
                        **{k: v for r in rest for k, v in heads(r).items()},
                    },
                },
                p,
            ),
        )
    yield Case(
        "segmentation_models_pytorch",
        resnet18,
        lambda s, t, p: saved(
            {
                **under(headless(s), "encoder."),
                **{k: v for i in range(5) for k, v in heads(f"decoder.blocks.{i}.conv1.").items()},
                **heads("segmentation_head."),
            },
            p,
        ),
    )
    yield Case(
        "fastai",
        resnet18,
        lambda s, t, p: saved({"model": {**under(numbered(s), "0."), **heads("1.")}, "opt": OPTIMIZER}, p),
    )
    yield Case(
        "Lightly",
        resnet18,
        lambda s, t, p: saved(
            {"state_dict": {**under(numbered(s), "backbone."), **heads("projection_head.layers.")}}, p
        ),
    )
    yield Case("nn.Sequential(*children)", resnet18, lambda s, t, p: saved(numbered(s), p))
    lightning = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {},
    }
    yield Case(
        "Lightning",
        resnet18,
        lambda s, t, p: saved(
            {**lightning, "state_dict": {**under(s, "model."), **extra(criterion__weight=(9,))}}, p
        ),
    )
    yield Case(
        "Lightning, Swin of torchvision into timm",
        torch_swin,
        lambda s, t, p: saved({**lightning, "state_dict": under(s, "model.backbone.")}, p),
        into=swin,
    )
    yield Case(
        "timm, with an average",
        vit,
        lambda s, t, p: saved(
            {
                "state_dict": t,
                "state_dict_ema": s,
                "args": ARGS,
                "metric": np.float64(0.7),
                "optimizer": OPTIMIZER,
            },
            p,
        ),
        {"ema": True},
        raw=True,
    )
    yield Case(
        "DeepSpeed, model states",
        vit,
        lambda s, t, p: saved(
            {
                "module": s,
                "param_shapes": [OrderedDict((k, v.shape) for k, v in s.items())],
                "ds_config": {"zero_optimization": {"stage": 2}},
                "buffer_names": [],
            },
            p,
        ),
    )
    yield Case(
        "composer",
        vit,
        lambda s, t, p: saved(
            {
                "state": {"model": under(s, "module."), "optimizers": {"Adam": OPTIMIZER}},
                "rng": [
                    {
                        "torch": torch.zeros(9, dtype=torch.uint8),
                        "numpy": ("MT19937", np.arange(4), 3, 0, 0.0),
                    }
                ],
            },
            p,
        ),
    )
    yield Case("PEFT, the base; adapters are unexpected", vit, lambda s, t, p: saved(peft(s), p))
    yield Case("torch.compile and DDP", vit, lambda s, t, p: saved(under(s, "_orig_mod.module."), p))
    yield Case(
        "FSDP, wrappers inside of names",
        vit,
        lambda s, t, p: saved(
            renamed(s, (r"^blocks\.(\d+)\.", r"blocks.\1._fsdp_wrapped_module._checkpoint_wrapped_module.")),
            p,
        ),
    )
    yield Case("FSDP2, DTensor", vit, lambda s, t, p: saved(spread(s), p))
    yield Case("DCP, a folder", vit, lambda s, t, p: as_folder(s, p))
    yield Case("arrays of numpy, .npz", vit, lambda s, t, p: as_npz(s, p))
    with contextlib.suppress(ImportError):
        import torchao  # noqa: F401

        yield Case("torchao", vit, lambda s, t, p: saved(quantised(s), p), close=0.01)


def towers() -> Iterator[Case]:
    """Yield files of whole models of Hugging Face, into their image towers."""
    import transformers as hf

    size = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    image, text = {**size, "image_size": 32, "patch_size": 8}, {**size, "vocab_size": 50}
    for name in ("CLIP", "Siglip"):
        config = getattr(hf, f"{name}Config")(vision_config=image, text_config=text)
        tower = getattr(hf, f"{name}VisionModel")
        whole = lambda s, config=config, name=name: {  # noqa: E731
            **drawn(lambda: getattr(hf, f"{name}Model")(config), 5),
            **under(s, "vision_model."),
        }
        yield Case(
            f"{name}, whole, of Hugging Face",
            lambda tower=tower, config=config: tower(config.vision_config),
            lambda s, t, p, whole=whole: saved(whole(s), p),
            {"prefix": "vision_model."},
        )


# Measuring --------------------------------------------------------------------------------------


@attrs.frozen
class Outcome:
    """What became of one way of loading."""

    word: str
    wrong: bool = False


def loaded(case: Case, step: Transform, state: State) -> Outcome:
    """Load, and compare every tensor that was loaded, or what the models give."""
    model = pipe((case.into or case.make)(), step).eval()
    report, held = load_report(model), model.state_dict()
    same = [key for key in report.loaded if key in state and held[key].shape == state[key].shape]
    wrong = [key for key in same if not torch.allclose(held[key], state[key], rtol=0, atol=case.close)]
    if not same:
        source, images = case.make().eval(), torch.rand(1, 3, 64, 64)
        source.load_state_dict(state)
        wrong = [] if torch.allclose(source(images), model(images), atol=1e-4) else ["the outputs"]
    if wrong:
        return Outcome(f"WRONG: {', '.join(wrong[:3])}", wrong=True)
    return Outcome(f"right, {len(report.loaded)} of {report.wanted}")


def tried(case: Case, path: Path, options: dict[str, object], state: State) -> Outcome:
    """Load in one way; where that is refused, do what the errors write."""
    held: dict[str, object] = {name: getattr(torchgraft, name) for name in torchgraft.__all__}
    held |= {"torch": torch, "pickle": pickle}
    step, said = load_weights(path, **options), ""
    while said.count("`") < 6:
        try:
            found = loaded(case, step, state)
            return Outcome(f"refused; {found.word} with {said}" if said else found.word, found.wrong)
        except GraftError as error:
            said += ", then " * bool(said) + f"`{error.write.replace(f'{path.parent}/', '')}`"
            line = error.write.replace(", where you trust the file", "")
            held["source"] = step.source if isinstance(step.source, Checkpoint) else read(step.source)
            line = re.sub(r"<the tensors>", "source.tensors", re.sub(r"<\d+ tensors>", "source", line))
            if line.startswith("from "):
                exec(line, held)
                step = load_weights(f"{path}.pth")
                continue
            try:
                step = eval(line, held)
            except SyntaxError:
                return Outcome(f"{type(error).__name__}, which writes {said}")
    return Outcome(f"refused, also with {said}")


def read(path: object) -> Checkpoint | None:
    try:
        return read_checkpoint(str(path))
    except GraftError:
        return None


HEAD = """# Checkpoints of other projects

`load_weights(path)` reads what trainings write: it enters wrappers, takes prefixes and the names of wrappers off, and gives account of every tensor. Where names say nothing, `by="structure"` goes by what tensors do. What it cannot know has to be said:

```python
>>> from torchgraft import load_report, load_weights, pipe
>>> from torchvision.models import resnet18
>>> momentum = {f"module.{side}.{key}": tensor for side in ("encoder_q", "encoder_k")
...             for key, tensor in resnet18().state_dict().items()}
>>> model = pipe(resnet18(), load_weights(momentum, prefix="module.encoder_q."))
>>> load_report(model).summary
'loaded 100.0 % of parameters (122 of 122 tensors)'

```

- `prefix="module.encoder_q."`: which of several models in a file; a prefix that most names have is taken off without a word.
- `into="encoder"`: which part of the model is filled.
- `key="teacher"`, `ema=True`: which of several mappings; a teacher is an average.
- `resize=True`: position embeddings, tables of biases and kernels of patches of another size are resampled, as `resize(image_size=...)` does for a model.
- `min_coverage`: the share of the tensors that the base had which has to be loaded, 0.9 unless said; what steps added or reshaped is listed apart.

Files of `torch.save`, of safetensors (also in shards), `.npz` and pickles of arrays are read, the pickles by torch's `weights_only` unpickler; nothing in a file is run. Settings beside the weights (`argparse.Namespace`, paths, numbers of numpy) are no obstacle. Tensors of several processes are gathered; quantised ones and folders of `torch.distributed.checkpoint` are refused with the line that makes dense tensors of them.

## Measured

By `benchmarks/checkpoints.py`, which `make sweep` runs: files with the key names of each project, made from small models with random weights, loaded into fresh ones. Every tensor that was loaded is compared with the one that the file was made from; "n of m" is how many of the model's were loaded. Where a loading is refused, the line that the error writes is done, and what came of it stands here.

"""


def main() -> None:
    """Measure all files, or those of some projects, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            if options.only not in case.project:
                continue
            state, other = drawn(case.make), drawn(case.make, 1)
            path = case.write(state, other, Path(folder) / "weights.pth")
            said = ", ".join(f"{name}={value!r}" for name, value in case.said.items()).replace("'", '"')
            plain = other if case.raw else state
            found = [tried(case, path, way, plain) for way in ({}, {"by": "structure"})]
            found += [tried(case, path, case.said, state)] if said else []
            wrong += sum(one.wrong for one in found)
            last = f"`{said}`: {found[2].word}" if said else ""
            rows.append(f"| {case.project} | {found[0].word} | {found[1].word} | {last} |")
            print(rows[-1], flush=True)
            for held in Path(folder).iterdir():
                shutil.rmtree(held) if held.is_dir() else held.unlink()
    distributed.destroy_process_group()
    table = ["| file | by names | by structure | with |", "|---|---|---|---|", *rows]
    if options.out:
        options.out.write_text(HEAD + "\n".join(table) + f"\n\nWrong: {wrong}.\n")


if __name__ == "__main__":
    main()
