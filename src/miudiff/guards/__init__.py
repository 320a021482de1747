"""Whether an image is what the model stains: H&E, in focus, at a believable scale, with tissue, near to what the model knows.

A guard measures one figure of some pixels and names the option that answers it; it changes nothing. `docs/guards.md` has for each
threshold how often it is wrong on real right and wrong images.
"""

from miudiff.guards.findings import Finding, inspect, warn
from miudiff.guards.reference import HEReference, measure_reference

__all__ = ["Finding", "HEReference", "inspect", "measure_reference", "warn"]
