"""miudiff: virtual histology staining, H&E to IHC, by mutual-information guided diffusion (MIU-Diff).

For research use only, not for diagnosis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miudiff.stainer import VirtualStainer

__version__ = "0.1.0"
__all__ = ["VirtualStainer", "__version__"]


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import; `miudiff --help` must not.
    if name == "VirtualStainer":
        return import_module("miudiff.stainer").VirtualStainer
    raise AttributeError(f"module 'miudiff' has no attribute '{name}'")
