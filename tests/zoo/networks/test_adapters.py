import pytest
import torch
from torch import nn

from zoo.networks.adapters import LowRank, adapt, merge
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import ParamLayout


def trained(module):
    return [name for name, param in module.named_parameters() if param.requires_grad]


def test_a_new_adapter_changes_nothing_shares_memory_and_keeps_names():
    base = ByteTransformer(11, 8, 8, 2, 2)
    adapted = adapt(base, rank=2, targets=("query", "blocks.1.up", "token_embedding"))
    tokens = torch.randint(11, (3, 8))
    torch.testing.assert_close(adapted(tokens), base(tokens), rtol=0, atol=0)
    owners = ("blocks.0.query", "blocks.1.query", "blocks.1.up")
    expected = {f"{owner}.lora_{factor}" for owner in owners for factor in "AB"}
    assert set(trained(adapted)) == expected | {f"token_embedding.lora_embedding_{factor}" for factor in "AB"}
    assert all(param.requires_grad for param in base.parameters())
    for name, param in base.state_dict().items():
        assert adapted.state_dict()[name].data_ptr() == param.data_ptr()


def test_adapters_train_as_in_a_plain_loop_and_the_base_does_not():
    base = MLP(5, (6,), 3)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = adapt(base, rank=2, train="layers.1.bias")
    optimizer = torch.optim.SGD((param for param in adapted.parameters() if param.requires_grad), 0.1)
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(adapted(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name])
    torch.testing.assert_close(merge(adapted)(x), adapted(x))
    assert not any(isinstance(part, LowRank) for part in merge(adapted).modules())


def test_frozen_batch_norm_keeps_the_statistics_of_its_base():
    base = CNN(1, (4, 6), 3)
    x = torch.randn(20, 1, 8, 8)
    base.train()(x)
    adapted = adapt(base, rank=2, train="norms.1.*").train()
    before = {name: value.clone() for name, value in adapted.named_buffers()}
    adapted(x)
    changed = {name for name, value in adapted.named_buffers() if not torch.equal(value, before[name])}
    assert changed == {f"norms.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    frozen = adapt(base, rank=2)
    torch.testing.assert_close(frozen.train()(x), base.eval()(x), rtol=0, atol=0)
    assert [type(norm) for norm in merge(frozen).norms] == [nn.BatchNorm2d, nn.BatchNorm2d]


def test_scales_follow_alpha_and_rank():
    def scale(**options):
        return adapt(MLP(5, (6,), 3), rank=4, **options).layers[0].scale

    assert (scale(), scale(alpha=8), scale(alpha=8, scaling="rslora")) == (1, 2, 4)


def test_roles_of_adapters_are_not_those_of_embeddings():
    layout = ParamLayout.of(adapt(ByteTransformer(11, 8, 8, 1, 2), rank=2, targets=("token_embedding", "head")))
    roles = {slot.name: slot.role for slot in layout if "lora" in slot.name}
    assert roles.pop("token_embedding.lora_embedding_A") == "embedding"
    assert set(roles.values()) == {"hidden"}


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (MLP(5, (6,), 3), {"rank": 0}, "rank must be a positive integer, got 0"),
        (MLP(5, (6,), 3), {"scaling": "half"}, "scaling must be one of"),
        (
            MLP(5, (6,), 3),
            {"targets": "query"},
            r"\['query'\] fits no layer that can be adapted; there are \['layers.0'",
        ),
        (MLP(5, (6,), 3), {"train": "norm.*"}, r"\['norm.\*'\] fits no parameter"),
        (nn.Sequential(nn.ReLU()), {}, "fits no layer that can be adapted; there are"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), {}, "'0' is a convolution of 2 groups"),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 1), {"targets": "linear1"}, "is passed over by"),
    ],
)
def test_what_cannot_be_adapted_is_refused_in_one_line(base, options, message):
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        adapt(base, **options)


@pytest.mark.parametrize("train", ["embedding.weight", "head.weight"])
def test_tied_parameters_that_are_trained_stay_tied(train):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.body(self.embedding(x)))

    base = Tied()
    adapted = adapt(base, rank=1, targets="body", train=train)
    assert adapted.head.weight is adapted.embedding.weight
    assert trained(adapted) == ["embedding.weight", "body.lora_A", "body.lora_B"]
    adapted(torch.arange(7)).square().sum().backward()
    base(torch.arange(7)).square().sum().backward()
    torch.testing.assert_close(adapted.head.weight.grad, base.head.weight.grad)
    assert merge(adapted).head.weight.data_ptr() != base.head.weight.data_ptr()
