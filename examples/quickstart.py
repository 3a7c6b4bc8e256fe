"""Customise a torchvision model, fine-tune it on real images, and show that nothing leaked.

A resnet18 learns the handwritten digits 0 to 4. A pipe then gives it attention, a head for
ten classes and a frozen stem, and it learns all ten digits in a few steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from torchgraft import at, diff, explain, freeze, get_model, load, pipe, recipe_of, save, swap_head, wrap
from torchgraft.blocks import se

OUT = Path(__file__).parent / "out"
SIDE = 32
BATCH = 64
PRETRAINING_EPOCHS = 6
FINE_TUNING_STEPS = 40


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Load scikit-learn's 1,797 handwritten digits as ``n 3 h w`` in 0 to 1, shuffled."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(bunch.target)[order]


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int, what: str) -> None:
    """Train for some steps; what is frozen is left out of the optimizer."""
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    bar = tqdm(range(steps), desc=f"  {what:<28}", ncols=80, leave=True)
    for _ in bar:
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.2f}")
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of right answers."""
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Run the whole story and print it."""
    torch.manual_seed(0)
    images, labels = digits()
    seen, held = slice(0, 1400), slice(1400, None)
    few = labels[seen] < 5

    print("\n1. A torchvision resnet18 learns the digits 0 to 4")
    base = get_model("resnet18", num_classes=5)
    epoch = int(few.sum()) // BATCH
    train(base, images[seen][few], labels[seen][few], PRETRAINING_EPOCHS * epoch, "pre-training")
    known = labels[held] < 5
    share = accuracy(base, images[held][known], labels[held][known])
    print(f"   accuracy on held-out digits 0 to 4: {share:.1%}")
    answers = base(images[held])

    print("\n2. What each step of the pipe changes")
    steps = [wrap("layer4", se), swap_head(10), freeze(at("conv1") | "bn1" | "layer1" | "layer2")]
    before = explain(base)
    print(f"   {'the model as it is':<58}{before.parameters:>12,} parameters, {before.trainable:,} trainable")
    for count in range(1, len(steps) + 1):
        now = explain(pipe(base, *steps[:count], seed=0))
        change = now.parameters - before.parameters
        print(f"   {steps[count - 1]!r:<58}{change:>+12,} parameters, {now.trainable:,} trainable")
        before = now
    model = pipe(base, *steps, seed=0)

    print(f"\n3. {FINE_TUNING_STEPS} steps on all ten digits")
    train(model, images[seen], labels[seen], FINE_TUNING_STEPS, "the customised model")
    torch.manual_seed(0)
    scratch = get_model("resnet18", num_classes=10)
    train(scratch, images[seen], labels[seen], FINE_TUNING_STEPS, "the same from scratch")
    ours, theirs = (accuracy(m, images[held], labels[held]) for m in (model, scratch))
    print(f"   accuracy on held-out digits 0 to 9: customised {ours:.1%}, from scratch {theirs:.1%}")

    print("\n4. The original was only read")
    same = torch.equal(base(images[held]), answers)
    print(f"   its answers are the same bit for bit: {'yes' if same else 'NO'}")
    print(f"   it has {sum(p.requires_grad for p in base.parameters())} trainable tensors, as before")

    print("\n5. One file holds the weights under their plain names, and what was done")
    OUT.mkdir(exist_ok=True)
    path = save(model, OUT / "digits.safetensors")
    again = load(path)
    equal = torch.equal(again(images[held]), model(images[held]))
    kept = sum(key in model.state_dict() for key in base.state_dict())
    size = path.stat().st_size / 1e6
    print(f"   {path.name}: {size:.1f} MB, {kept} of {len(base.state_dict())} keys as before")
    print("   " + recipe_of(again).to_yaml().strip().replace("\n", "\n   "))
    print(f"   read back, the outputs are the same bit for bit: {'yes' if equal else 'NO'}")

    print("\n6. What the model says of itself")
    print("   " + str(explain(model)).replace("\n", "\n   "))
    page = OUT / "diff.html"
    page.write_text(diff(base, model).to_html(), encoding="utf-8")
    print(f"\n7. What changed, side by side: {page}")
    if not (same and equal):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
