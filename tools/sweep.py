"""Train several arms of one model together: every batch passes the frozen trunk once for all of them."""

from scaleup.recipe import sweep_arms
from scaleup.training import tool

if __name__ == "__main__":
    tool.main(__doc__, "tools/sweep.py recipes/sweeps/frozen_depth.yaml out=runs/sweep", sweep_arms)
