import torch

from learned_opt import NormalizedRule, load_pretrained
from learned_opt.controller import NUM_HIDDEN, SCALAR_NAMES, decode
from learned_opt.former_thetas import upgraded

NUM_FORMER_SCALARS, NUM_FORMER_INPUTS = 25, 16


def former(num_numbers: int) -> torch.Tensor:
    return torch.arange(1.0, num_numbers + 1) / 100


def test_scalars_keep_their_names():
    theta = upgraded("normalized", former(NUM_FORMER_SCALARS), 1)
    assert len(theta) == len(SCALAR_NAMES)
    named = dict(zip(SCALAR_NAMES, (100 * theta).round().int().tolist(), strict=True))
    assert named["rate"] == 1
    assert named["depth_power"] == 14  # the three powers of the width came after it
    assert named["agreement_rate"] == 18
    assert named["mix_hidden"] == 22
    assert named["mix_output"] == 0
    assert named["decay_horizon"] == 25


def test_network_loses_its_view_of_the_width_alone():
    num_weights = NUM_HIDDEN * (NUM_FORMER_INPUTS + 1) + 3 * (NUM_HIDDEN + 1)
    theta = former(NUM_FORMER_SCALARS + num_weights)
    before = theta[NUM_FORMER_SCALARS:][: NUM_FORMER_INPUTS * NUM_HIDDEN].view(NUM_FORMER_INPUTS, NUM_HIDDEN)
    _, network = decode(upgraded("normalized", theta, 1)[None], network=True)
    assert torch.equal(network.hidden_weight[0], before[[i for i in range(NUM_FORMER_INPUTS) if i != 3]])
    assert torch.equal(network.output_bias.flatten(), theta[-3:])


def test_other_rules_and_todays_files_stay_as_they_are():
    theta = former(30)
    assert upgraded("small_fc_lopt", theta, 1) is theta
    assert upgraded("normalized", theta, 2) is theta


def test_weights_of_the_package_are_read():
    assert load_pretrained("mulo-norm").theta.shape == (NormalizedRule().num_theta,)
    assert load_pretrained("mulo-norm-scalars").theta.shape == (len(SCALAR_NAMES),)
