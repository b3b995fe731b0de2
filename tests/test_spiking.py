"""Neurons against a plain loop, the network against the authors' parts, frames against the sequence."""

import copy
from itertools import pairwise

import pytest
import torch
from DCLS.construct.modules import Dcls1d as AuthorsDcls1d
from torch import nn
from torch.nn import functional as F

from dcls_models.layers import narrowed
from dcls_models.spiking import DelayNet, leaky, lif, lif_reference, summed_softmax

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def spikes(*shape, rate=0.2):
    return (torch.rand(shape) < rate).float()


class TestNeurons:
    @pytest.mark.parametrize("tau", [1.0, 1.005, 1.5, 20.0])
    def test_fused_neuron_is_the_loop(self, tau):
        currents = (torch.randn(3, 5, 30).double() + 0.3).requires_grad_()
        weights = torch.randn(3, 5, 30).double()
        outputs = [neuron(currents, tau) for neuron in (lif, lif_reference)]
        grads = [torch.autograd.grad((out * weights).sum(), currents)[0] for out in outputs]
        assert torch.equal(*outputs)
        assert 10 < outputs[0].sum() < 440
        torch.testing.assert_close(*grads, **EXACT)

    def test_by_hand(self):
        currents = torch.tensor([[[0.6, 0.6, 0.6, 0.6, 1.0, -0.5]]])
        # tau 2: 0.6; 0.9; 1.05 fires, 0; 0.6; 1.3 fires, 0; -0.5
        assert lif(currents, 2.0).flatten().tolist() == [0, 0, 1, 0, 1, 0]
        membranes = leaky(currents[..., :3], 2.0).flatten()
        torch.testing.assert_close(membranes, torch.tensor([0.6, 0.9, 1.05]))

    def test_the_reset_has_no_gradient(self):
        currents = torch.tensor([[[2.0, 0.5]]]).double().requires_grad_()
        (grad,) = torch.autograd.grad(lif(currents, 2.0)[..., 1].sum(), currents)
        assert grad[0, 0, 0] == 0 and grad[0, 0, 1] > 0

    def test_readout_gradients(self):
        currents = torch.randn(2, 3, 8).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: leaky(x, 1.5), currents)

    def test_scores_are_summed_softmax(self):
        membranes = torch.randn(4, 5, 9)
        scores = summed_softmax(membranes)
        assert scores.shape == (4, 5)
        torch.testing.assert_close(scores.sum(1), torch.full((4,), 9.0))


class AuthorsNet(nn.Module):
    """The authors' network from their own layers, in their order, with neurons of ``lif_reference``."""

    def __init__(self, sizes, size, tau, neuron=None):
        super().__init__()
        parts = []
        for inputs, outputs in pairwise(sizes):
            parts.append(
                AuthorsDcls1d(inputs, outputs, 1, dilated_kernel_size=size, bias=False, version="gauss")
            )
            parts += [nn.BatchNorm1d(outputs), nn.Identity(), nn.Identity()]
        self.model = nn.Sequential(*parts[:-3], nn.Identity())
        for delays in self.delays():
            nn.init.kaiming_uniform_(delays.weight, nonlinearity="relu")
            nn.init.uniform_(delays.P, -(size // 2) - 1, size // 2)
            delays.clamp_parameters()
            nn.init.constant_(delays.SIG, size // 2)
            delays.SIG.requires_grad = False
        self.size, self.tau, self.neuron = size, tau, neuron or lif_reference

    def delays(self):
        return [m for m in self.model if isinstance(m, AuthorsDcls1d)]

    def forward(self, x):
        for delays in self.delays():
            last = delays is self.delays()[-1]
            x = delays(F.pad(x, (self.size - 1, (self.size - 1) // 2)))
            if not last:
                norm = self.model[list(self.model).index(delays) + 1]
                x = self.neuron(norm(x), self.tau)
        membrane, frames = 0.0, []
        for current in x.unbind(-1):
            membrane = membrane - membrane / self.tau + current
            frames.append(membrane)
        return torch.stack(frames, -1)

    def adams(self):
        norms = [p for m in self.model if isinstance(m, nn.BatchNorm1d) for p in m.parameters()]
        weights = torch.optim.Adam(
            [{"params": [d.weight for d in self.delays()], "weight_decay": 1e-5}, {"params": norms}], 5e-3
        )
        return [weights, torch.optim.Adam([d.P for d in self.delays()], 0.1)]


def one_adam(net):
    weights = [d.conv.weight for d in net.delays()]
    positions = [d.conv.positions for d in net.delays()]
    groups = [
        {"params": weights, "weight_decay": 1e-5},
        {"params": list(net.norms.parameters())},
        {"params": positions, "lr": 0.1},
    ]
    return torch.optim.Adam(groups, 5e-3)


def pair(dtype, neuron=None, tau=1.5):
    theirs = AuthorsNet([10, 12, 12, 5], 9, tau, neuron).to(dtype)
    ours = DelayNet([10, 12, 12, 5], 8, tau).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


class TestAuthorsNetwork:
    """Live, against their package: state dicts, training steps in float64, the evaluation form."""

    def test_their_state_dict_loads(self):
        theirs, ours = pair(torch.float32)
        for their, our in zip(theirs.delays(), ours.delays(), strict=True):
            assert torch.equal(their.weight, our.conv.weight) and torch.equal(their.P, our.conv.positions)
            assert (our.conv.sigma == 4).all()
        assert torch.equal(theirs.model[5].running_var, ours.norms[1].running_var)
        with pytest.raises(RuntimeError, match="Unexpected key"):
            ours.load_state_dict(theirs.state_dict() | {"model.12.weight": torch.zeros(5, 12, 1)})

    def test_their_network_without_delays_loads(self):
        sizes, state, expected = [4, 6, 3], {}, DelayNet([4, 6, 3], delays="none").state_dict()
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            state[f"model.{4 * layer}.weight"] = torch.randn(outputs, inputs)
        for key in [k for k in expected if k.startswith("norms")]:
            state[key.replace("norms.0", "model.1")] = torch.rand(expected[key].shape)
        net, input = DelayNet(sizes, tau=1.5, delays="none"), spikes(2, 4, 9)
        net.load_state_dict(state)
        norm = net.eval().norms[0]
        assert torch.equal(norm.running_var, state["model.1.running_var"])
        hidden = lif(norm(state["model.0.weight"] @ input), 1.5)
        torch.testing.assert_close(net(input), leaky(state["model.4.weight"] @ hidden, 1.5))

    def test_training_steps(self, neuron=None, steps=6):
        theirs, ours = pair(torch.float64, neuron)
        adams, adam = theirs.adams(), one_adam(ours)
        fired = 0
        for step in range(steps):
            sigma = narrowed(step // 2, 12, 4.0)
            for delays in theirs.delays():
                delays.SIG.data.fill_(sigma)
            for delays in ours.delays():
                delays.set_sigma(sigma)
            input, labels = spikes(8, 10, 30).double(), torch.randint(5, (8,))
            outputs = [theirs(input), ours(input)]
            torch.testing.assert_close(*outputs, **EXACT)
            fired += ours.activities(input)[0].sum()
            for optimizer in (*adams, adam):
                optimizer.zero_grad()
            for out in outputs:
                F.cross_entropy(summed_softmax(out), labels).backward()
            for their, our in zip(theirs.delays(), ours.delays(), strict=True):
                torch.testing.assert_close(our.conv.weight.grad, their.weight.grad, **EXACT)
                torch.testing.assert_close(our.conv.positions.grad, their.P.grad, **EXACT)
            for optimizer in (*adams, adam):
                optimizer.step()
            for delays in theirs.delays():
                delays.clamp_parameters()
            for their, our in zip(theirs.delays(), ours.delays(), strict=True):
                torch.testing.assert_close(our.conv.weight, their.weight, **EXACT)
                torch.testing.assert_close(our.conv.positions, their.P, rtol=0, atol=1e-9)
        assert fired > 100

    def test_evaluation_form(self):
        theirs, ours = pair(torch.float32)
        input = spikes(8, 10, 30)
        theirs(input), ours(input)  # statistics of the normalisation
        theirs.eval(), ours.eval()
        with torch.no_grad():
            for delays in theirs.delays():
                delays.P.round_()
                delays.SIG.zero_()
                delays.version = delays.DCK.version = "max"
            assert torch.equal(ours(input), theirs(input))


class TestDelayNet:
    @pytest.mark.parametrize("kind", [{}, {"delays": "fixed"}, {"delays": "none"}, {"axonal": True}], ids=str)
    def test_frame_by_frame_is_the_sequence(self, kind):
        net = DelayNet([6, 8, 8, 4], 6, 1.5, tail=0, **kind)
        input = spikes(3, 6, 40)
        for _ in range(3):
            net(input)
        net.eval()
        with torch.no_grad():
            expected = net(input)
            for runs in (net, copy.deepcopy(net).fuse()):
                torch.testing.assert_close(runs(input), expected, rtol=1e-5, atol=1e-5)
                state, frames = None, []
                for frame in input.unbind(-1):
                    membranes, state = runs.step(frame, state)
                    frames.append(membranes)
                torch.testing.assert_close(torch.stack(frames, -1), expected, rtol=1e-5, atol=1e-5)

    def test_frames_are_the_sequence_with_the_authors_padding(self):
        net, input = DelayNet([6, 8, 8, 4], 6, 1.5), spikes(3, 6, 40)
        net(input)
        net.eval()
        whole, state = net(input), None
        for time, frame in enumerate(F.pad(input, (0, 3)).unbind(-1)):
            membranes, state = net.step(frame, state)
            torch.testing.assert_close(membranes, whole[..., time], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", ["learned", "none"])
    def test_other_channels_are_refused(self, kind):
        net = DelayNet([6, 8, 4], 6, delays=kind).eval()
        with pytest.raises(ValueError, match=r"spikes must be \(batch, 6, time\), got \(2, 5, 9\)"):
            net(torch.zeros(2, 5, 9))
        with pytest.raises(ValueError, match=r"spikes must be \(batch, 6\), got \(2, 7\)"):
            net.step(torch.zeros(2, 7))

    def test_a_fused_network_is_not_saved(self, tmp_path):
        with pytest.raises(ValueError, match=r"save\(\) before fuse\(\)"):
            DelayNet([6, 8, 4], 6).fuse().save(tmp_path)

    def test_step_is_for_inference(self):
        with pytest.raises(RuntimeError, match=r"call eval\(\) first"):
            DelayNet([6, 8, 4], 6).step(spikes(3, 6))

    def test_dropout_drops_a_neuron_for_all_frames(self):
        torch.manual_seed(0)
        net = DelayNet([6, 50, 4], 6, dropout=0.5)
        kept = net.dropout(torch.ones(2, 50, 9))
        assert set(kept.unique().tolist()) == {0.0, 2.0}
        assert (kept == kept[..., :1]).all()

    def test_trained_numbers_of_the_authors_shd_network(self):
        net = DelayNet([140, 256, 256, 20], 24)
        assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 214_016

    def test_saved_and_loaded(self, tmp_path):
        net = DelayNet([6, 8, 4], 6, 1.5, delays="fixed", kernel_count=2).eval()
        net.save(tmp_path, class_names=["a", "b", "c", "d"])
        loaded, input = DelayNet.load(str(tmp_path)), spikes(3, 6, 20)
        assert torch.equal(loaded(input), net(input)) and not loaded.training
        assert loaded.config == net.config

    def test_something_else_is_not_loaded(self, tmp_path):
        (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
        with pytest.raises(ValueError, match="holds no DelayNet"):
            DelayNet.load(tmp_path)

    @pytest.mark.parametrize(
        "given, message",
        [
            ({"sizes": [4]}, "sizes must be inputs, hidden layers and classes"),
            ({"sizes": [4, 0, 2]}, "at least 1 each"),
            ({"tau": 0.5}, "tau must be at least 1 frame, got 0.5"),
            ({"tau": float("nan")}, "tau must be at least 1 frame, got nan"),
            ({"delays": "some"}, "delays must be one of learned, fixed, none, got 'some'"),
            ({"max_delay": 0}, "max_delay must be an even number"),
            ({"dropout": 2.0}, "dropout probability"),
        ],
    )
    def test_arguments_are_checked(self, given, message):
        with pytest.raises(ValueError, match=message):
            DelayNet(**{"sizes": [4, 5, 2], **given})


class TestSpikingJelly:
    """Where it is installed: the authors' own neuron."""

    def neuron(self, currents, tau):
        pytest.importorskip("spikingjelly")
        from spikingjelly.activation_based import neuron, surrogate

        node = neuron.LIFNode(
            tau=tau,
            decay_input=False,
            detach_reset=True,
            step_mode="m",
            surrogate_function=surrogate.ATan(alpha=5.0),
        ).to(currents)
        return node(currents.movedim(-1, 0)).movedim(0, -1)

    def test_neuron(self):
        currents = (torch.randn(3, 5, 30).double() + 0.3).requires_grad_()
        weights = torch.randn(3, 5, 30).double()
        outputs = [self.neuron(currents, 1.5), lif(currents, 1.5)]
        grads = [torch.autograd.grad((out * weights).sum(), currents)[0] for out in outputs]
        assert torch.equal(*outputs)
        torch.testing.assert_close(*grads, **EXACT)

    def test_training_steps(self):
        pytest.importorskip("spikingjelly")
        TestAuthorsNetwork().test_training_steps(self.neuron)
