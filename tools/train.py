"""Train one model: a small one jointly on images and videos, or the late layers of an adapted one."""

from scaleup.cli import train_and_sweep

if __name__ == "__main__":
    train_and_sweep.main(
        __doc__,
        "tools/train.py recipes/demo/small.yaml train.steps=300 out=runs/small",
        lambda recipe: {"model": recipe.arm},
    )
