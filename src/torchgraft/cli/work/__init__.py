"""What the commands do: a function of its name for each, imported with torch when the command runs."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "listing": ["blocks", "models"],
        "making": ["apply", "build", "check"],
        "relating": ["align", "diff"],
        "showing": ["explain", "show"],
    },
)
