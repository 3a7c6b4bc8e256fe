"""What layers and operations do with the places of a map, and what they need where it is denser."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import attrs
import torch
from torch import fx, nn

from torchgraft.errors import TargetError, TraceError
from torchgraft.graph import dense
from torchgraft.graph.density import Fact, Facts, Grid, Rule, Tokens, Walk, flat, name_of
from torchgraft.graph.density_windows import call_window, helper, layer_window, pad, pad_layer
from torchgraft.graph.layout_rules import SAME, operation
from torchgraft.graph.window import KINDS, Pair
