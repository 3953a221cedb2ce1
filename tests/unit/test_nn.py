# SPDX-License-Identifier: Apache-2.0
"""Modules: registration, traversal, state, hooks, text, initial values."""

from __future__ import annotations

import copy
import math
import pickle

import pytest

import paceline
import paceline.nn.functional as F
from paceline import nn
from unit import cases


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.GELU(approximate="tanh"), nn.Dropout(0.1))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 7, bias=False)
        self.register_buffer("scale", paceline.ones(1))
        self.register_buffer("cache", paceline.zeros(3), persistent=False)

    def forward(self, x):
        return self.head(self.norm(self.body(self.embed(x)))) * self.scale


def test_names_and_order() -> None:
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "embed.weight", "body.0.weight", "body.0.bias", "norm.weight", "norm.bias", "head.weight",
    ]  # fmt: skip
    assert [n for n, _ in net.named_modules()] == [
        "", "embed", "body", "body.0", "body.1", "body.2", "norm", "head",
    ]  # fmt: skip
    assert [n for n, _ in net.named_buffers()] == ["scale", "cache"]
    assert [type(c).__name__ for c in net.children()] == [
        "Embedding", "Sequential", "LayerNorm", "Linear",
    ]  # fmt: skip
    assert list(net.state_dict()) == [
        "scale", "embed.weight", "body.0.weight", "body.0.bias", "norm.weight", "norm.bias",
        "head.weight",
    ]  # fmt: skip
    assert net(paceline.randint(0, 7, (2, 3))).shape == (2, 3, 7)


def test_tied_weights_come_once() -> None:
    net = Net()
    net.head = nn.Linear(4, 7, bias=False)
    net.head.weight = net.embed.weight
    assert sum(p is net.embed.weight for p in net.parameters()) == 1
    assert "head.weight" in net.state_dict()
    assert len(list(net.named_parameters(remove_duplicate=False))) == 6
    again = copy.deepcopy(net)
    assert again.head.weight is again.embed.weight


REPR = """Net(
  (embed): Embedding(7, 4)
  (body): Sequential(
    (0): Linear(in_features=4, out_features=8, bias=True)
    (1): GELU(approximate='tanh')
    (2): Dropout(p=0.1, inplace=False)
  )
  (norm): LayerNorm((8,), eps=1e-05, elementwise_affine=True)
  (head): Linear(in_features=8, out_features=7, bias=False)
)"""


def test_repr() -> None:
    assert repr(Net()) == REPR


LAYERS = [
    "Identity()", "ReLU()", "ReLU(inplace=True)", "Tanh()", "Softmax(dim=1)", "LogSoftmax(-1)",
    "SiLU()", "Flatten()", "GELU()", "CrossEntropyLoss()", "MSELoss()", "Embedding(3, 2, 0)",
    "LinearCrossEntropyLoss(3, 5, bias=True)",
    "LayerNorm(3, elementwise_affine=False)", "ModuleList([nn.Linear(1, 2)])", "Sigmoid()",
    "Sequential()", "ModuleDict({'a': nn.ReLU()})", "LeakyReLU(0.2)", "Dropout()",
    "LayerNorm((2, 3), eps=1e-3, bias=False)", "RMSNorm(3)", "RMSNorm([2, 3], 1e-5, False)",
]  # fmt: skip


@pytest.mark.parametrize("code", LAYERS)
def test_repr_as_pytorch(code: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = repr(eval("nn." + code, {"nn": torch.nn})).replace(", bias=False", "")
    assert repr(eval("nn." + code, {"nn": nn})) == theirs


def test_state_round_trip_and_messages() -> None:
    net, other = Net(), Net()
    result = other.load_state_dict(net.state_dict())
    assert repr(result) == "<All keys matched successfully>"
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert paceline.equal(a, b)
    state = net.state_dict()
    state["extra"] = state.pop("head.weight")
    state["norm.bias"] = paceline.zeros(3)
    with pytest.raises(RuntimeError) as caught:
        other.load_state_dict(state)
    assert str(caught.value) == (
        "Error(s) in loading state_dict for Net:\n"
        '\tMissing key(s) in state_dict: "head.weight". \n'
        '\tUnexpected key(s) in state_dict: "extra". \n'
        "\tsize mismatch for norm.bias: copying a param with shape (3,) from checkpoint, "
        "the shape in current model is (8,)."
    )
    del state["norm.bias"]
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert missing == ["norm.bias", "head.weight"]
    assert unexpected == ["extra"]
    with pytest.raises(TypeError, match="dict-like"):
        other.load_state_dict([])


def test_state_is_shared_memory_and_parameters_stay_the_same_objects() -> None:
    layer = nn.Linear(2, 2)
    weight = layer.weight
    layer.state_dict()["weight"].fill_(3)
    assert weight.tolist() == [[3, 3], [3, 3]]
    layer.load_state_dict({"weight": paceline.ones(2, 2), "bias": paceline.ones(2)})
    layer.double()
    assert layer.weight is weight
    assert weight.dtype is paceline.float64
    assert weight.requires_grad
    layer.load_state_dict({"weight": paceline.zeros(2, 2), "bias": paceline.ones(2)}, assign=True)
    assert layer.weight is weight
    assert weight.dtype is paceline.float32


def test_pytorch_state_loads() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Linear(3, 2)
    own = nn.Linear(3, 2)
    own.load_state_dict(theirs.state_dict() | {"bias": theirs.bias.detach().numpy()})
    assert own.weight.tolist() == theirs.weight.tolist()


def test_attributes() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="as parameter 'weight'"):
        layer.weight = paceline.ones(2, 2)
    layer.bias = None
    assert [n for n, _ in layer.named_parameters()] == ["weight"]
    assert layer(paceline.ones(1, 2)).shape == (1, 2)
    layer.tag = 5
    assert layer.tag == 5
    del layer.weight
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'weight'"):
        layer.weight  # noqa: B018

    class Bad(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Bad()
    net = Net()
    net.scale = paceline.zeros(1)
    assert "scale" in net.state_dict()
    with pytest.raises(TypeError, match="buffer"):
        net.scale = 3
    with pytest.raises(KeyError, match="contain"):
        net.register_buffer("a.b", paceline.ones(1))
    with pytest.raises(KeyError, match="already exists"):
        net.register_buffer("forward", paceline.ones(1))
    with pytest.raises(NotImplementedError, match='missing the required "forward"'):
        nn.Module()(1)


def test_train_eval_apply_to() -> None:
    net = Net()
    net.eval()
    assert not any(m.training for m in net.modules())
    x = paceline.randint(0, 7, (2, 3))
    assert paceline.equal(net(x), net(x))
    net.train()
    seen = []
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen[-1] == "Net"
    assert len(seen) == 8
    assert net.to("cpu") is net
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    assert net.bfloat16().embed.weight.dtype is paceline.bfloat16
    assert net.scale.dtype is paceline.bfloat16
    with pytest.raises(TypeError, match="floating"):
        net.to(paceline.int64)


def test_zero_grad() -> None:
    layer = nn.Linear(2, 1)
    layer(paceline.ones(1, 2)).sum().backward()
    layer.zero_grad(set_to_none=False)
    assert layer.weight.grad.tolist() == [[0, 0]]
    layer.zero_grad()
    assert layer.weight.grad is None


def test_hooks() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(2)
    x = paceline.ones(1, 1)
    with layer.register_forward_pre_hook(lambda m, args: (args[0] * 10,)):
        assert layer(x).item() == 20
    handle = layer.register_forward_hook(lambda m, args, out: out + 1)
    first = layer.register_forward_hook(lambda m, args, out: out * 0, prepend=True)
    assert layer(x).item() == 1
    first.remove()
    assert layer(x).item() == 3
    handle.remove()
    assert layer(x).item() == 2


def test_pickle() -> None:
    net = pickle.loads(pickle.dumps(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    assert net(paceline.ones(1, 2)).shape == (1, 2)


# -- containers -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [nn.ReLU, nn.GELU, lambda: nn.GELU("tanh"), nn.Tanh])
def test_sequential_fuses_to_the_same(make) -> None:
    model = nn.Sequential(nn.Linear(5, 6), make(), nn.Linear(6, 2))
    x = paceline.randn(3, 5)
    apart = model[2](model[1](model[0](x)))
    together = model(x)
    assert paceline.allclose(together, apart, rtol=1e-6, atol=1e-6)
    for out in (apart, together):
        model.zero_grad()
        out.square().sum().backward()
        grad = model[0].weight.grad.clone()
    model.zero_grad()
    model[2](model[1](model[0](x))).square().sum().backward()
    assert paceline.allclose(grad, model[0].weight.grad, rtol=1e-5, atol=1e-6)
    model.zero_grad()


def test_sequential_with_hooks_is_not_fused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    seen = []
    model[0].register_forward_hook(lambda m, args, out: seen.append("linear"))
    model[1].register_forward_hook(lambda m, args, out: seen.append("relu"))
    model(paceline.ones(1, 2))
    assert seen == ["linear", "relu"]
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[1].forward = lambda x: x * 0 + 5
    assert model(paceline.ones(1, 2)).tolist() == [[5, 5]]
    model[0].forward = lambda x: seen.append("own") or x
    model(paceline.ones(1, 2))
    assert seen[-1] == "own"


def test_containers() -> None:
    seq = nn.Sequential({"a": nn.Linear(1, 2), "b": nn.ReLU()})
    assert [n for n, _ in seq.named_children()] == ["a", "b"]
    assert len(seq[:1]) == 1
    assert isinstance(seq[-1], nn.ReLU)
    seq.append(nn.Tanh())
    assert len(seq) == 3
    with pytest.raises(IndexError):
        seq[3]
    modules = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))
    modules.insert(1, nn.ReLU())
    assert [type(m).__name__ for m in modules] == ["Linear", "ReLU", "Linear", "Linear"]
    del modules[0]
    modules[0] = nn.Tanh()
    assert [n for n, _ in modules.named_children()] == ["0", "1", "2"]
    named = nn.ModuleDict({"x": nn.ReLU()})
    named["y"] = nn.Tanh()
    assert list(named.keys()) == ["x", "y"]
    assert "y" in named
    params = nn.ParameterList([paceline.ones(1), nn.Parameter(paceline.ones(2))])
    assert len(list(params.parameters())) == 2
    with pytest.raises(TypeError):
        modules.append(3)


# -- initial values ---------------------------------------------------------------------------


def test_layers_start_as_in_pytorch() -> None:
    paceline.manual_seed(0)
    layer = nn.Linear(100, 400)
    bound = 1 / math.sqrt(100)
    for values in (layer.weight.detach(), layer.bias.detach()):
        assert values.abs().max().item() <= bound
        # Uniform: std is bound / sqrt(3); 400 values know it to about 3 %.
        assert abs(values.std().item() * math.sqrt(3) / bound - 1) < 0.15
    table = nn.Embedding(300, 100, padding_idx=-1)
    assert abs(table.weight.detach()[:-1].std().item() - 1) < 0.03
    assert table.weight[299].abs().sum().item() == 0
    norm = nn.LayerNorm(3)
    assert norm.weight.tolist() == [1, 1, 1]
    assert norm.bias.tolist() == [0, 0, 0]
    assert nn.RMSNorm((2, 1)).weight.tolist() == [[1], [1]]
    assert nn.RMSNorm(3, elementwise_affine=False).weight is None
    paceline.manual_seed(0)
    assert paceline.equal(nn.Linear(100, 400).weight, layer.weight)


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("xavier_uniform_", math.sqrt(2 / 500)),
        ("xavier_normal_", math.sqrt(2 / 500)),
        ("kaiming_uniform_", math.sqrt(2 / 200)),
        ("kaiming_normal_", math.sqrt(2 / 200)),
        ("normal_", 1.0),
        ("trunc_normal_", 0.8796),
        ("uniform_", 1 / math.sqrt(12)),
    ],
)
def test_init(name: str, std: float) -> None:
    paceline.manual_seed(1)
    w = nn.Parameter(paceline.empty(300, 200))
    assert getattr(nn.init, name)(w) is w
    # 60000 values: the standard deviation is known to 0.3 %; 5 sigma are allowed.
    assert abs(w.detach().std().item() / std - 1) < 0.015
    assert w.requires_grad
    if name == "trunc_normal_":
        assert w.detach().abs().max().item() <= 2


def test_init_of_constants_and_errors() -> None:
    w = paceline.empty(2, 3)
    assert nn.init.constant_(w, 2.5).tolist() == [[2.5] * 3] * 2
    assert nn.init.zeros_(w).sum().item() == 0
    assert nn.init.ones_(w).sum().item() == 6
    assert nn.init.eye_(w).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert nn.init.calculate_gain("leaky_relu", 1) == 1
    assert nn.init.calculate_gain("tanh") == 5 / 3
    for bad in (
        lambda: nn.init.xavier_uniform_(paceline.empty(3)),
        lambda: nn.init.kaiming_normal_(w, mode="fan"),
        lambda: nn.init.calculate_gain("relu6x"),
        lambda: nn.init.trunc_normal_(w, a=1, b=1),
        lambda: nn.init.trunc_normal_(w, mean=50.0),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            bad()


# -- clipping ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clip_grad_norm_as_pytorch(norm_type: float, max_norm: float) -> None:
    torch = pytest.importorskip("torch")
    own, theirs = [], []
    for shape in ((3, 2), (5,), ()):
        values = paceline.randn(shape)
        p, q = paceline.zeros(shape, requires_grad=True), torch.zeros(shape, requires_grad=True)
        p.grad, q.grad = values.clone(), torch.tensor(values.tolist())
        own.append(p)
        theirs.append(q)
    own.append(paceline.zeros(2, requires_grad=True))
    norm = nn.utils.clip_grad_norm_(own, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    for p, q in zip(own, theirs, strict=False):
        assert p.grad.reshape(-1).tolist() == pytest.approx(q.grad.reshape(-1).tolist(), rel=1e-5)


def test_clip_grad_value_and_nonfinite() -> None:
    p = paceline.zeros(3, requires_grad=True)
    p.grad = paceline.tensor([-5.0, 0.1, math.inf])
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
    nn.utils.clip_grad_value_(p, 2.0)
    assert p.grad.tolist() == pytest.approx([-2, 0.1, 2])
    vector = nn.utils.parameters_to_vector([p, paceline.ones(1)])
    assert vector.shape == (4,)
    nn.utils.vector_to_parameters(paceline.arange(3.0), [p])
    assert p.tolist() == [0, 1, 2]


# -- functional -------------------------------------------------------------------------------


@pytest.mark.parametrize("code", cases.CALLS)
def test_functional_as_pytorch(code: str) -> None:
    own, wanted = cases.call(paceline, code), cases.expected("call", code)
    # fp32 against fp32, sums of at most 24 terms; gradients pass through two such sums.
    cases.assert_same(own["out"], wanted["out"], rtol=2e-5, atol=2e-6)
    for name in ("x", "w"):
        cases.assert_same(own[name], wanted[name], rtol=2e-4, atol=2e-5)


def test_functional_refusals() -> None:
    x = paceline.ones(2, 3)
    i = paceline.zeros(2, dtype=paceline.int64)
    cases = [
        (ValueError, lambda: F.linear(x, x, activation="sin")),
        (RuntimeError, lambda: F.gelu(x, "fast")),
        (RuntimeError, lambda: F.layer_norm(x, (2,))),
        (RuntimeError, lambda: F.rms_norm(x, ())),
        (RuntimeError, lambda: F.rms_norm(x, (3,), paceline.ones(2))),
        (RuntimeError, lambda: F.rms_norm(i, (2,))),
        (ValueError, lambda: F.dropout(x, 1.5)),
        (ValueError, lambda: F.cross_entropy(x, i, reduction="avg")),
        (TypeError, lambda: F.cross_entropy(x, i, size_average=True)),
        (RuntimeError, lambda: F.one_hot(i - 1)),
        (RuntimeError, lambda: F.one_hot(i + 3, 2)),
        (NotImplementedError, lambda: F.embedding(i, x, sparse=True)),
        (IndexError, lambda: F.embedding(i + 5, x)),
        (IndexError, lambda: F.cross_entropy(x, i + 3)),
        (ValueError, lambda: F.binary_cross_entropy_with_logits(x, i)),
        (NotImplementedError, lambda: F.pad(x, (1, 1), mode="reflect")),
        (RuntimeError, lambda: F.scaled_dot_product_attention(x, x, x, x, is_causal=True)),
    ]
    for error, call in cases:
        with pytest.raises(error, match=r"^\["):
            call()


def test_inplace() -> None:
    x = paceline.tensor([-1.0, 2.0])
    assert nn.ReLU(inplace=True)(x) is not None
    assert x.tolist() == [0, 2]
    w = paceline.tensor([-1.0, 2.0], requires_grad=True)
    nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))(w * 1).sum().backward()
    assert w.grad.tolist() == [0, 1]


def test_a_target_of_another_shape_warns() -> None:
    with pytest.warns(UserWarning, match="broadcast"):
        F.mse_loss(paceline.ones(3, 1), paceline.ones(3))


def test_dropout_keeps_the_mean() -> None:
    paceline.manual_seed(0)
    x = paceline.ones(20_000)
    y = F.dropout(x, 0.25)
    assert abs(y.mean().item() - 1) < 0.03
    kept = (y != 0).double().mean().item()
    assert abs(kept - 0.75) < 0.02
    assert y.max().item() == pytest.approx(1 / 0.75)
