"""Train several arms of one model together: every batch passes the frozen trunk once for all of them."""

from scaleup.recipe import sweep_arms
from scaleup.training import tool

if __name__ == "__main__":
    tool.main(
        __doc__, "tools/sweep.py recipes/demo/sweep.yaml 'grid.lr=[1e-3,3e-3]' out=runs/sweep", sweep_arms, swept=True
    )
