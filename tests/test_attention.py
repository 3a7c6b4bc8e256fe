"""Attention blocks: neutral in every dtype, mode and layout, trainable, the papers' arithmetic on request."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from checks import close
from nets import Small
from torch import fx, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.swin_transformer import SwinTransformer

from torchgraft import pipe, wrap
from torchgraft.blocks.cbam import cbam
from torchgraft.blocks.channel_attention import channel_attention
from torchgraft.blocks.coord_attention import coord_attention
from torchgraft.blocks.eca import eca
from torchgraft.blocks.ese import ese
from torchgraft.blocks.gather_excite import gather_excite
from torchgraft.blocks.global_context import global_context
from torchgraft.blocks.non_local import non_local
from torchgraft.blocks.se import se
from torchgraft.blocks.self_attention import heads_for, self_attention
from torchgraft.blocks.simam import simam
from torchgraft.blocks.spatial_attention import spatial_attention
from torchgraft.blocks.triplet_attention import triplet_attention
from torchgraft.errors import LayoutError, OptionError
from torchgraft.spec import TensorSpec

# Factory, options, the fewest axes it takes (4: maps alone), weights at 256 channels: neutral, of the paper.
TABLE = [
    (se, {}, 2, 8_464, 8_464),
    (eca, {}, 2, 5, 5),
    (cbam, {}, 4, 8_290, 8_290),
    (channel_attention, {}, 2, 8_192, 8_192),
    (channel_attention, {"reduction": 4}, 2, 32_768, 32_768),
    (spatial_attention, {}, 4, 98, 98),
    (spatial_attention, {"kernel": 3}, 4, 18, 18),
    (coord_attention, {}, 4, 6_664, 6_672),
    (coord_attention, {"reduction": 8}, 4, 25_120, 25_152),
    (global_context, {}, 2, 8_752, 8_752),
    (global_context, {"fusion": "multiply"}, 2, 8_752, 8_752),
    (simam, {}, 3, 1, 0),
    (non_local, {}, 3, 131_072, 131_072),
    (triplet_attention, {}, 4, 297, 300),
    (triplet_attention, {"kernel": 3}, 4, 57, 60),
    (gather_excite, {}, 2, 512, 0),
    (gather_excite, {"extent": 2}, 4, 2_560, 2_816),
    (gather_excite, {"extent": 8}, 4, 7_680, 8_448),
    (self_attention, {}, 3, 262_912, 262_912),
    (self_attention, {"heads": 8}, 3, 262_912, 262_912),
    (ese, {}, 2, 65_792, 65_792),
]
SHAPES = {2: (2, 16), 3: (2, 16, 6), 4: (2, 16, 7, 5), 5: (2, 16, 3, 4, 2)}


def label(value: object) -> str | None:
    if callable(value):
        return value.__name__
    return ",".join(f"{k}={v}" for k, v in value.items()) or "-" if isinstance(value, dict) else None


def rows(*columns: int, keep=lambda row: True):
    return pytest.mark.parametrize(
        ("factory", "options", "fewest", "count", "paper")[: max(columns) + 1],
        [row[: max(columns) + 1] for row in TABLE if keep(row)],
        ids=label,
    )


def spec(channels: int, rank: int | None = 4, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec(channels, 1, rank, dtype, torch.device("cpu"))


def built(block, shape, dtype=torch.float32) -> nn.Module:
    return block.build(spec(shape[1], len(shape), dtype))


def shapes(fewest: int) -> list[tuple[int, ...]]:
    """Give a shape of every rank that a block takes."""
    return [SHAPES[rank] for rank in SHAPES if rank == 4 or (fewest <= rank and fewest < 4)]


ODD = [(1, 16, 1, 1), (1, 16, 1, 9), (3, 3, 4, 4), (2, 1, 3, 3)]


# Neutral starts -----------------------------------------------------------------------------


@rows(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_neutral_start_is_exact(factory, options, fewest, dtype):
    for shape in [*shapes(fewest), *ODD]:
        if options.get("heads", 1) > shape[1]:
            continue
        module = built(factory(**options), shape, dtype)
        assert not list(module.buffers())
        x = torch.randn(shape, dtype=torch.float64)
        for scale in (1, 1e4, 1e-30, 0):
            given = (x * scale).to(dtype)
            for mode in (True, False):
                assert module.train(mode)(given).equal(given)
            if len(shape) == 4:  # as the library hands over n h w c
                turned = given.contiguous(memory_format=torch.channels_last)
                assert module(turned).equal(given)
                assert module(turned).stride() == turned.stride()


@rows(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_new_weight_gets_a_gradient_within_two_steps(factory, options, fewest, dtype):
    for shape in {SHAPES[4], SHAPES[max(fewest, 3)]}:
        module = built(factory(**options), shape, dtype)
        x = torch.randn(shape, dtype=dtype)
        reached = set()
        for _ in range(2):
            module(x).square().mean().backward()
            reached |= {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
            torch.optim.SGD(module.parameters(), lr=1e-2).step()
            module.zero_grad()
        assert reached == {n for n, _ in module.named_parameters()}
        if dtype is not torch.bfloat16:  # where so small a step may round away
            assert not module(x).equal(x)


@rows(2)
def test_the_samples_of_a_batch_do_not_depend_on_each_other(factory, options, fewest):
    module = stirred(built(factory(**options), SHAPES[4], torch.float64)).train()
    x = torch.randn(SHAPES[4], dtype=torch.float64)
    assert torch.allclose(module(x)[:1], module(x[:1]), rtol=0, atol=1e-12)


@rows(2)
def test_an_empty_batch_passes(factory, options, fewest):
    module = built(factory(**options), SHAPES[4])
    assert module(torch.randn(0, 16, 7, 5)).shape == (0, 16, 7, 5)


# The papers ---------------------------------------------------------------------------------


def stirred(module: nn.Module) -> nn.Module:
    """Give weights that are neither zero nor one, and batch norms a past."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return module


def sigmoid(module: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Give the gate of a module: one over one plus e to the minus, doubled where it is neutral."""
    return (1 + module.neutral) / (1 + (-logits).exp())


def matrix(layer: nn.Module) -> torch.Tensor:
    return layer.weight.reshape(layer.weight.shape[:2])


def softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def batch_normed(norm: nn.Module, y: torch.Tensor) -> torch.Tensor:
    if not isinstance(norm, nn.BatchNorm2d):
        return y
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    mean, var, scale, shift = (t.reshape(1, -1, 1, 1) for t in (mean, var, norm.weight, norm.bias))
    return (y - mean) / (var + norm.eps).sqrt() * scale + shift


def layer_normed(norm: nn.LayerNorm, y: torch.Tensor) -> torch.Tensor:
    mean, var = y.mean(-1, keepdim=True), y.var(-1, correction=0, keepdim=True)
    return (y - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def of_se(m, x):
    z = x.mean(2)
    z = (z @ matrix(m.fc1).T + m.fc1.bias).clamp(min=0) @ matrix(m.fc2).T + m.fc2.bias
    return x * sigmoid(m, z)[..., None]


def of_eca(m, x):
    kernel = m.conv.weight.flatten()
    z, reach = x.mean(2), len(kernel) // 2
    logits = torch.zeros_like(z)
    for c in range(z.shape[1]):
        for k, weight in enumerate(kernel):
            if 0 <= c + k - reach < z.shape[1]:
                logits[:, c] += weight * z[:, c + k - reach]
    return x * sigmoid(m, logits)[..., None]


def of_channel_attention(m, x):
    pooled = [x.mean(2), x.max(2).values]
    logits = sum((z @ matrix(m.fc1).T).clamp(min=0) @ matrix(m.fc2).T for z in pooled)
    return x * sigmoid(m, logits)[..., None]


def of_spatial_attention(m, x, conv="conv"):
    conv = getattr(m, conv)
    pad = conv.kernel_size[0] // 2
    pooled = F.pad(torch.stack([x.mean(1), x.max(1).values], 1), (pad, pad, pad, pad))
    logits = torch.empty_like(x[:, :1])
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            window = pooled[:, :, i : i + conv.kernel_size[0], j : j + conv.kernel_size[1]]
            logits[:, 0, i, j] = (window * conv.weight[0]).sum((1, 2, 3)) + (
                0 if conv.bias is None else conv.bias
            )
    return x * sigmoid(m, batch_normed(getattr(m, "norm", None), logits))


def of_cbam(m, x):
    gated = of_channel_attention(m, x.flatten(2)).reshape(x.shape)
    return of_spatial_attention(m, gated, "spatial")


def of_coord_attention(m, x):
    height, width = x.shape[2:]
    strips = [x[:, :, i].mean(-1) for i in range(height)] + [x[:, :, :, j].mean(-1) for j in range(width)]
    squeezed = torch.stack([z @ matrix(m.conv).T for z in strips], 2)[..., None]
    if m.conv.bias is not None:
        squeezed = squeezed + m.conv.bias.reshape(1, -1, 1, 1)
    squeezed = batch_normed(m.norm, squeezed)[..., 0]
    squeezed = squeezed * (squeezed + 3).clamp(0, 6) / 6
    out = x.clone()
    for i in range(height):
        out[:, :, i] *= sigmoid(m, squeezed[:, :, i] @ matrix(m.conv_h).T + m.conv_h.bias)[..., None]
    for j in range(width):
        z = squeezed[:, :, height + j] @ matrix(m.conv_w).T + m.conv_w.bias
        out[:, :, :, j] *= sigmoid(m, z)[..., None]
    return out


def of_global_context(m, x):
    alpha = softmax(torch.einsum("ncp,c->np", x, m.score.weight[0]))
    context = torch.einsum("ncp,np->nc", x, alpha)
    hidden = layer_normed(m.norm, context @ m.fc1.weight.T + m.fc1.bias).clamp(min=0)
    context = (hidden @ m.fc2.weight.T + m.fc2.bias)[..., None]
    return x * sigmoid(m, context) if m.multiply else x + context


def of_simam(m, x):
    gap = (x - x.mean(2, keepdim=True)) ** 2
    energy = 4 * (x.var(2, keepdim=True) + m.penalty) / (gap + 2 * x.var(2, keepdim=True) + 2 * m.penalty)
    paper = x / (1 + (-1 / energy).exp())
    return paper if m.blend is None else x + m.blend * (paper - x)


def of_non_local(m, x):
    theta, phi, g = (torch.einsum("ncp,dc->npd", x, layer.weight) for layer in (m.theta, m.phi, m.g))
    y = softmax(torch.einsum("nid,njd->nij", theta, phi)) @ g
    return x + torch.einsum("npd,cd->ncp", y, m.fc.weight)


def of_triplet_attention(m, x):
    # As the paper draws it: rotate, gate as CBAM gates places, rotate back, average the three.
    by_h = of_zpool(m.over_h, x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
    by_w = of_zpool(m.over_w, x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
    return (by_h + by_w + of_zpool(m.over_c, x)) / 3


def of_zpool(m, x):
    pooled = torch.stack([x.max(1).values, x.mean(1)], 1)
    logits = F.conv2d(pooled, m.conv.weight, m.conv.bias, padding=m.conv.kernel_size[0] // 2)
    return x * sigmoid(m, batch_normed(m.norm, logits))


def of_gather_excite(m, x):
    if x.ndim == 3:
        z = x.mean(2)
        if m.neutral:
            z = z * m.conv.weight[:, 0, 0] + m.conv.bias
        return x * sigmoid(m, z)[..., None]
    convs = [layer for layer in m.gather if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in m.gather if isinstance(layer, nn.BatchNorm2d)] or [None] * len(convs)
    z = x
    for conv, norm in zip(convs, norms, strict=True):
        z = z if conv is convs[0] else z.clamp(min=0)
        z = batch_normed(norm, F.conv2d(z, conv.weight, conv.bias, 2, 1, groups=z.shape[1]))
    near = [torch.arange(big) * small // big for big, small in zip(x.shape[2:], z.shape[2:], strict=True)]
    return x * sigmoid(m, z[:, :, near[0]][:, :, :, near[1]])


def of_self_attention(m, x):
    tokens = layer_normed(m.norm, x.transpose(1, 2))
    query, key, value = (tokens @ w.T for w in m.qkv.weight.chunk(3))
    width = x.shape[1] // m.heads
    read = []
    for head in range(m.heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width)
        read.append(softmax(scores) @ value[..., part])
    return x + (torch.cat(read, -1) @ m.proj.weight.T + m.proj.bias).transpose(1, 2)


def of_ese(m, x):
    logits = x.mean(2) @ matrix(m.fc).T + m.fc.bias
    return x * ((1 + m.neutral) * (logits + 3).clamp(0, 6) / 6)[..., None]


def of_paper(factory, module, x):
    """Compute a block from the formula of its paper, slowly; blocks for all layouts see a row of places."""
    formula = globals()[f"of_{factory.__name__}"]
    if factory in (cbam, spatial_attention, coord_attention, triplet_attention) or hasattr(module, "gather"):
        return formula(module, x)
    return formula(module, x.reshape(*x.shape[:2], -1)).reshape(x.shape)


@rows(2)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("neutral", [True, False], ids=["neutral", "paper"])
def test_the_arithmetic_is_that_of_the_paper(factory, options, fewest, neutral, training):
    for shape in shapes(fewest):
        module = built(factory(**options, neutral=neutral), shape, torch.float64)
        module = stirred(module).train(training)
        x = torch.randn(shape, dtype=torch.float64)
        with torch.no_grad():
            ours, theirs = module(x), of_paper(factory, module, x)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
        assert not torch.allclose(ours, x, rtol=0, atol=1e-3)


@rows(2)
def test_the_form_of_the_paper_is_another_function_from_the_start(factory, options, fewest):
    x = torch.randn(2, 64, 8, 8)
    torch.manual_seed(1)
    module = built(factory(**options, neutral=False), x.shape).eval()
    with torch.no_grad():
        assert torch.allclose(module(x), of_paper(factory, module, x), rtol=1e-6, atol=1e-6)
        assert (module(x) - x).abs().mean() > 1e-3
    for name, parameter in module.named_parameters():
        assert parameter.any() or name.endswith("bias"), name  # those of norms are zero


def test_coord_attention_treats_rows_as_columns():
    module = stirred(built(coord_attention(), (2, 16, 7, 5), torch.float64))
    other = built(coord_attention(), (2, 16, 5, 7), torch.float64)
    swap = {"conv_h": "conv_w", "conv_w": "conv_h"}
    other.load_state_dict(
        {
            ".".join([swap.get(part, part) for part in key.split(".")]): value
            for key, value in module.state_dict().items()
        }
    )
    x = torch.randn(2, 16, 7, 5, dtype=torch.float64)
    assert torch.allclose(other(x.transpose(2, 3)), module(x).transpose(2, 3), rtol=0, atol=1e-12)


def test_non_local_does_not_divide_by_the_root_of_the_width():
    module = built(non_local(neutral=False), (1, 8, 2), torch.float64)
    for layer in (module.theta, module.phi, module.g):
        nn.init.eye_(layer.weight)
    nn.init.eye_(module.fc.weight)
    x = torch.zeros(1, 8, 2, dtype=torch.float64)
    x[0, 0] = torch.tensor([1.0, 2.0])
    weight = 1 / (1 + math.e)  # of the first place seen from itself, whose scores are 1 and 2
    assert math.isclose(module(x)[0, 0, 0].item(), 1 + weight * 1 + (1 - weight) * 2, abs_tol=1e-12)


def test_simam_of_the_paper_is_where_the_blend_is_one():
    neutral, paper = simam().build(spec(4)), simam(neutral=False).build(spec(4))
    nn.init.ones_(neutral.blend)
    x = torch.randn(2, 4, 5, 6)
    assert torch.allclose(neutral(x), paper(x), rtol=0, atol=1e-6)


def test_simam_stands_half_precision_and_channels_without_variance():
    wide = torch.randn(2, 4, 32, 32) * 100  # whose squares do not fit into half precision
    assert simam().build(spec(4, dtype=torch.float16))(wide.half()).equal(wide.half())
    paper = simam(neutral=False).build(spec(4))
    assert torch.allclose(paper((wide / 4).half()).float(), paper(wide / 4), rtol=5e-3, atol=1e-2)
    flat = torch.zeros(2, 4, 5, 5, requires_grad=True)
    simam(neutral=False).build(spec(4))(flat).sum().backward()
    assert flat.grad.isfinite().all()


def test_the_batch_norms_of_the_papers_see_the_batch():
    x = torch.randn(2, 16, 7, 5)
    for block in (coord_attention, triplet_attention, gather_excite):
        options = {"extent": 4} if block is gather_excite else {}
        module = built(block(**options, neutral=False), x.shape)
        assert not torch.allclose(module(x)[:1], module(x[:1]), atol=1e-4)
    one = torch.randn(1, 16, 1, 1)
    assert coord_attention(neutral=False).build(spec(16))(one).isfinite().all()  # its row and its column
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        triplet_attention(neutral=False).build(spec(16))(one)


# Values -------------------------------------------------------------------------------------


@rows(4)
def test_weights_at_256_channels(factory, options, fewest, count, paper):
    for neutral, expected in ((True, count), (False, paper)):
        module = factory(**options, neutral=neutral).build(spec(256))
        assert sum(p.numel() for p in module.parameters()) == expected


@rows(1)
@pytest.mark.parametrize("more", [{}, {"neutral": False}], ids=["neutral", "paper"])
def test_a_block_is_a_value(factory, options, more):
    block = factory(**options, **more)
    assert pickle.loads(pickle.dumps(block)) == block
    assert eval(repr(block)) == block
    assert hash(eval(repr(block))) == hash(block)
    assert factory(**options, **more) == block != factory(**options, neutral=not block.options[-1][1])
    assert block.keeps_shape
    assert block.label() == factory.__name__


def test_modules_have_the_dtype_and_device_of_their_place():
    for factory, options, *_ in TABLE:
        for neutral in (True, False):
            block = factory(**options, neutral=neutral)
            module = block.build(TensorSpec(64, 1, 4, torch.float64, torch.device("meta")))
            assert all(p.is_meta and p.dtype == torch.float64 for p in module.parameters())


# Refusals -----------------------------------------------------------------------------------


@rows(2, keep=lambda row: row[2] > 2)
def test_what_a_block_has_no_meaning_for_is_refused(factory, options, fewest):
    block = factory(**options)
    for rank in range(2, fewest):
        with pytest.raises(LayoutError) as caught:
            block.build(spec(16, rank))
        assert caught.value.asked == repr(block)
        assert caught.value.found == repr(spec(16, rank))
        assert caught.value.write
    if fewest == 3:
        with pytest.raises(IndexError):
            block.build(spec(16, None))(torch.randn(2, 16))  # never a wrong answer


def test_options_are_checked():
    for call in (
        lambda: channel_attention(reduction=0),
        lambda: spatial_attention(kernel=4),
        lambda: coord_attention(reduction=1.5),
        lambda: global_context(fusion="mul"),
        lambda: simam(penalty=0),
        lambda: non_local(reduction=True),
        lambda: triplet_attention(kernel=2),
        lambda: gather_excite(extent=1),
        lambda: self_attention(heads=0),
        lambda: ese(neutral=1),
        lambda: ese(16),
    ):
        with pytest.raises(OptionError):
            call()


@pytest.mark.parametrize(
    ("call", "write"),
    [
        (lambda: gather_excite(extent=6), "gather_excite(extent=4)"),
        (lambda: gather_excite(extent=0), "gather_excite(extent=2)"),
        (lambda: global_context(fusion="multiplied"), 'global_context(fusion="multiply")'),
        (lambda: spatial_attention(kernel=4), "spatial_attention(kernel=5)"),
        (lambda: self_attention(head=4), "self_attention(heads=4)"),
        (lambda: self_attention(heads=5).build(spec(16)), "self_attention(heads=4)"),
        (
            lambda: self_attention(heads=64, neutral=False).build(spec(48)),
            "self_attention(heads=48, neutral=False)",
        ),
    ],
)
def test_errors_write_what_is_right(call, write):
    with pytest.raises(OptionError) as caught:
        call()
    assert caught.value.write == write
    eval(write)


def test_heads_that_do_not_divide_are_refused_before_anything_is_changed():
    with pytest.raises(OptionError) as caught:
        pipe(Small(), wrap("stage", self_attention(heads=3)))
    assert caught.value.found == "3 heads for 8 channels"
    assert caught.value.write == 'wrap("stage", self_attention(heads=2))'


def test_heads_from_the_channels():
    assert [heads_for(c) for c in (1, 24, 64, 97, 192, 256, 768, 1000)] == [1, 1, 1, 1, 3, 4, 12, 10]
    for channels in range(1, 600):
        heads = heads_for(channels)
        assert channels % heads == 0
        assert heads == 1 or channels // heads >= 64


# In models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return resnet18(num_classes=5).eval()


@pytest.fixture(scope="module")
def swin():
    torch.manual_seed(0)
    return SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=5).eval()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 1, 2, 24, 32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)  # zero as it comes, which would hide everything before it
    return model


def check_in(model, path, block, x):
    with torch.no_grad():
        assert pipe(model, wrap(path, block()))(x).equal(model(x))
        result = pipe(model, wrap(path, block(neutral=False)), seed=1)
        assert not torch.allclose(result(x), model(x), rtol=0, atol=1e-6)
    return result.get_submodule(path), model.get_submodule(path)


def with_options(factory, options):
    return lambda **more: factory(**options, **more)


@rows(1)
def test_in_a_convolutional_network(resnet, factory, options):
    check_in(resnet, "layer4", with_options(factory, options), torch.randn(2, 3, 64, 96))


@rows(1)
def test_with_the_channels_last(swin, factory, options):
    block = with_options(factory, options)
    wrapped, bare = check_in(swin, "features.3", block, torch.randn(2, 3, 32, 64))
    y = torch.randn(2, 4, 8, 48)
    module = wrapped.get_submodule(factory.__name__)
    with torch.no_grad():
        assert torch.allclose(wrapped(y), module(bare(y).movedim(-1, 1)).movedim(1, -1), rtol=0, atol=1e-6)


@rows(2, keep=lambda row: "extent" not in row[1])
def test_on_tokens(vit, factory, options, fewest):
    block = with_options(factory, options)
    if fewest == 4:
        with pytest.raises(LayoutError):
            pipe(vit, wrap("encoder", block()))
        return
    wrapped, bare = check_in(vit, "encoder", block, torch.randn(2, 3, 32, 32))
    y = torch.randn(2, 17, 24)
    module = wrapped.get_submodule(factory.__name__)
    with torch.no_grad():
        assert torch.allclose(wrapped(y), module(bare(y).mT).mT, rtol=0, atol=1e-6)


@rows(2)
@pytest.mark.parametrize("neutral", [True, False], ids=["neutral", "paper"])
def test_traces(factory, options, fewest, neutral):
    module = stirred(built(factory(**options, neutral=neutral), SHAPES[4]))
    traced = fx.symbolic_trace(module)
    for shape in shapes(fewest):
        x = torch.randn(shape)
        for mode in (True, False):
            assert traced.train(mode)(x).equal(module.train(mode)(x))


@rows(1)
@pytest.mark.filterwarnings("ignore")
def test_compiles(factory, options):
    module = stirred(built(factory(**options, neutral=False), SHAPES[4])).eval()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    x = torch.randn(SHAPES[4])
    close(compiled(x), module(x))


@rows(1)
@pytest.mark.filterwarnings("ignore")
def test_exports_with_a_dynamic_batch(factory, options):
    for neutral in (True, False):
        module = stirred(built(factory(**options, neutral=neutral), SHAPES[4])).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(
            module, (torch.randn(SHAPES[4]),), dynamic_shapes=({0: batch},)
        ).module()
        for size in (1, 5):
            x = torch.randn(size, *SHAPES[4][1:])
            close(exported(x), module(x))
