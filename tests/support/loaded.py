"""Load files of models in a process of its own: ``python loaded.py FOLDER``.

Each ``<name>.safetensors`` there has an ``<name>.pt`` beside it, with the expression of its base,
if it has one, and an input; the outputs of the loaded models go to ``outputs.pt``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def outputs(folder: Path) -> dict[str, object]:
    """Load all files of a folder in a new process, and return what the models give."""
    subprocess.run([sys.executable, "-W", "ignore", __file__, str(folder)], check=True)
    return torch.load(folder / "outputs.pt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    sys.path[:0] = [str(ROOT / "property_tests"), str(ROOT / "tests" / "support")]
    from checks import flat, run

    from torchgraft.store.load import load

    found = {}
    for path in sorted(folder.glob("*.safetensors*")):
        name = path.name.partition(".")[0]
        said = folder / f"{name}.pt"
        if not said.exists():
            continue  # a shard
        case = torch.load(said)
        model = load(folder / f"{name}.safetensors", **_base(case["base"]))
        found[name] = [flat(run(model, case["input"], mode=mode)) for mode in (False, True)]
    torch.save(found, folder / "outputs.pt")


def _base(expression: str) -> dict[str, object]:
    if not expression:
        return {}
    from strategies.net import built

    return {"base": lambda: built(expression)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
