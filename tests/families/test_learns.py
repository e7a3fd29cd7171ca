import copy

import torch
import torch.nn.functional as F
from families import HEADS, Stored, images, videos

from scaleup.config.schema import Arm as Settings
from scaleup.training.engine import parameter_groups


def test_two_steps_move_the_arm_and_leave_the_trunk(stored: Stored) -> None:
    model = stored.model().with_arm(1, True, HEADS)
    model.train()
    assert model.trunk is not None and not any(module.training for module in model.trunk.modules())
    trunk, arm = copy.deepcopy(model.trunk.state_dict()), copy.deepcopy(dict(model.arm.named_parameters()))
    optimizer = torch.optim.AdamW(parameter_groups(model.arm, Settings(lr=1e-3)))
    labels = torch.tensor([0, 2])
    for x in (videos(stored.size), images(stored.size)):
        loss = F.cross_entropy(model(x), labels)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = model.trunk.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in trunk.items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.trunk.parameters())
    assert [name for name, parameter in model.arm.named_parameters() if torch.equal(parameter, arm[name])] == []
    assert all(parameter.isfinite().all() for parameter in model.arm.parameters())


def test_everything_trains_where_nothing_is_frozen(stored: Stored) -> None:
    model = stored.model(frozen_depth=0).train()
    F.cross_entropy(model(videos(stored.size)), torch.tensor([0, 2])).backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert still == []
