"""Moving the tubes of a small joint model into a large image ViT (paper, Section 3.6).

The kernels are the small model's own, re-expressed for the backbone's input normalisation; channels are matched by a
fold (space-to-depth), so no new weight is needed. The image model is left as it is, and all of this is measured.
"""

from scaleup.transplant.plan import Options
from scaleup.transplant.run import transplant

__all__ = ["Options", "transplant"]
