"""Two models whose layers correspond and do not compute the same: that is said, and nothing is loaded unasked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchgraft import load_report, load_weights, pipe, transfer, transfer_weights
from torchgraft.alignment.align import align
from torchgraft.errors import AlignmentError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Merging(nn.Module):
    """Join four neighbours in one of two orders of channels."""

    def __init__(self, *, unfolds):
        super().__init__()
        self.unfolds = unfolds
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm, self.reduction = nn.LayerNorm(32), nn.Linear(32, 16, bias=False)
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem(x)
        if self.unfolds:
            x = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
        else:
            x = torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1).flatten(2).transpose(1, 2)
        return self.fc2(self.fc1(self.reduction(self.norm(x))).relu()).mean(1)


def drawn(seed, **options):
    torch.manual_seed(seed)
    net = Merging(**options)
    nn.init.normal_(net.norm.weight, 1, 0.5)
    return net.eval()


def test_an_alignment_says_what_behaviour_contradicts_in_its_first_line():
    found = align(drawn(1, unfolds=True), drawn(2, unfolds=False), example=X)
    assert str(found).splitlines()[0].endswith("behaviour contradicts 5, first reduction.weight")
    assert found.of("stem.weight").evidence == "behaviour"
    assert {e.target for e in found.entries if e.evidence == "contradicted"} == {
        "reduction.weight", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias",
    }  # fmt: skip
    same = align(drawn(1, unfolds=True), drawn(2, unfolds=True), example=X)
    assert {entry.evidence for entry in same.entries} == {"behaviour"}
    assert "contradicts" not in str(same)


@pytest.mark.parametrize("give", [transfer, transfer_weights])
def test_nothing_is_transferred_against_behaviour(give):
    source, target = drawn(1, unfolds=True), drawn(2, unfolds=False)
    with pytest.raises(AlignmentError) as caught:
        give(source, target, example=X)
    assert str(caught.value) == (
        "behaviour contradicts where 5 of 9 tensors come from\n"
        f"  asked  {give.__name__}(<a Merging>, <a Merging>, example=<a Tensor>)\n"
        "  found  other values than in the source, first at reduction.weight\n"
        f"  write  {give.__name__}(<a Merging>, <a Merging>, example=<a Tensor>, allow_contradicted=True)"
    )
    filled = give(source, target, example=X, allow_contradicted=True)
    assert filled.fc1.weight.equal(source.fc1.weight)
    assert load_report(filled).summary == (
        "loaded 100.0 % of parameters (9 of 9 tensors); 5 contradicted by behaviour"
    )


def test_nor_by_a_step_of_a_pipe():
    source, target = drawn(1, unfolds=True), drawn(2, unfolds=False)
    with pytest.raises(AlignmentError, match="behaviour contradicts"):
        pipe(target, load_weights(source, by="structure"), example=X)
    step = load_weights(source, by="structure", exclude=("reduction", "fc1", "fc2"))
    assert len(load_report(pipe(target, step, example=X)).loaded) == 4


def test_what_differs_for_a_reason_that_is_seen_is_no_contradiction():
    """A layer more, another width or a smaller map explain that values differ."""

    def net(*more, stride=1, classes=5):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride), *more, nn.ReLU(), nn.Conv2d(8, 9, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(9, classes),
        ).eval()  # fmt: skip

    one = net()
    for other in (net(nn.BatchNorm2d(8)), net(classes=7), net(nn.Conv2d(8, 8, 1))):
        assert "contradicted" not in {entry.evidence for entry in align(one, other, example=X).entries}
        transfer(one, other, example=X, min_coverage=0)
