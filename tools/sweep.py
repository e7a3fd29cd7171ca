"""Train several arms of one model together: every batch passes the frozen trunk once for all of them."""

from scaleup.cli import train_and_sweep
from scaleup.recipe import sweep_arms

if __name__ == "__main__":
    train_and_sweep.main(
        __doc__, "tools/sweep.py recipes/demo/sweep.yaml 'grid.lr=[1e-3,3e-3]' out=runs/sweep", sweep_arms, swept=True
    )
