"""What the laws are tried on: nets, selectors, transforms, and edits that must fail."""

from torch import nn as nn

from strategies.arguments import ARGUMENTS as ARGUMENTS
from strategies.arguments import summed as summed
from strategies.block_rows import BLOCK_ROWS as BLOCK_ROWS
from strategies.edits import Placed as Placed
from strategies.edits import additions as additions
from strategies.edits import aliases as aliases
from strategies.edits import apart as apart
from strategies.edits import edits as edits
from strategies.edits import tied as tied
from strategies.failing import FAILING as FAILING
from strategies.failing import failing as failing
from strategies.functions import OfTheUserError as OfTheUserError
from strategies.net import CHANNELS as CHANNELS
from strategies.net import CLASSES as CLASSES
from strategies.net import SIDE as SIDE
from strategies.net import Net as Net
from strategies.net import built as built
from strategies.net import inputs as inputs
from strategies.nets import TRAITS as TRAITS
from strategies.nets import nets as nets
from strategies.parts import *  # noqa: F403 - the words of the grammar, so that a printed net can be pasted
from strategies.row import ALWAYS as ALWAYS
from strategies.row import EVALUATION as EVALUATION
from strategies.row import Row as Row
from strategies.row import covered as covered
from strategies.rows import ROWS as ROWS
from strategies.rows import rows as rows
from strategies.selectors import FORMS as FORMS
from strategies.selectors import modules as modules
from strategies.selectors import paths_of as paths_of
from strategies.selectors import selectors as selectors
