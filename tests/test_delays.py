"""The layer of delays: what it computes, its other forms, and the authors' layer beside it."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from DCLS.construct.modules import Dcls1d as AuthorsDcls1d
from torch.nn import functional as F

from dcls_models.layers import Delays, narrowed

FORMS = [{}, {"kernel_count": 3}, {"axonal": True}, {"axonal": True, "kernel_count": 2}, {"tail": 5}]


def spikes(*shape, rate=0.2):
    return (torch.rand(shape) < rate).float()


def by_hand(layer, input):
    """Every spike arrives at every target as often, as late and as strong as the table says."""
    table = layer.to_numpy()
    batch, _, time = input.shape
    out = np.zeros((batch, layer.outputs, time + layer.tail))
    for (o, i, n), weight in np.ndenumerate(table["weights"]):
        late = table["delays"][o, i, n]
        for t in range(time):
            if t + late < out.shape[-1]:
                out[:, o, t + late] += weight * input[:, i, t].numpy()
    return torch.tensor(out, dtype=torch.float32)


@pytest.mark.parametrize("form", FORMS, ids=str)
class TestForms:
    def test_eval_is_what_the_table_says(self, form):
        layer, input = Delays(4, 3, 6, **form).eval(), spikes(2, 4, 20)
        torch.testing.assert_close(layer(input), by_hand(layer, input))

    def test_fused_is_the_same(self, form):
        layer, input = Delays(7, 5, 8, **form).eval(), spikes(3, 7, 30)
        torch.testing.assert_close(layer.fuse()(input), layer(input))

    def test_frame_by_frame_is_the_same(self, form):
        layer, input = Delays(7, 5, 8, **form).eval(), spikes(3, 7, 30) * torch.randint(1, 4, (3, 7, 30))
        silence = torch.zeros(3, 7, layer.tail)
        for runs in (layer, layer.fuse()):
            state, frames = None, []
            for frame in torch.cat((input, silence), -1).unbind(-1):
                currents, state = runs.step(frame, state)
                frames.append(currents)
            torch.testing.assert_close(torch.stack(frames, -1), layer(input))

    def test_frames_in_training_are_the_sequence(self, form):
        layer, input = Delays(4, 3, 6, **{**form, "tail": 0}), spikes(2, 4, 15)
        state, frames = None, []
        for frame in input.unbind(-1):
            currents, state = layer.step(frame, state)
            frames.append(currents)
        torch.testing.assert_close(torch.stack(frames, -1), layer(input))
        torch.stack(frames, -1).square().sum().backward()
        assert layer.conv.positions.grad.abs().sum() > 0

    @pytest.mark.parametrize("training", [True, False])
    def test_nothing_depends_on_the_future(self, form, training):
        layer, input = Delays(4, 3, 6, **form).train(training), spikes(2, 4, 20)
        changed = input.clone()
        changed[..., 12:] = 1 - changed[..., 12:]
        assert torch.equal(layer(input)[..., :12], layer(changed)[..., :12])

    def test_copies_and_state_dicts_carry_everything(self, form):
        layer, input = Delays(4, 3, 6, **form), spikes(2, 4, 20)
        layer.set_sigma(1.5)
        other = Delays(4, 3, 6, **form)
        other.load_state_dict(layer.state_dict())
        for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(input), layer(input))
        for twin in (copy.deepcopy(layer.fuse()), pickle.loads(pickle.dumps(layer.fuse()))):
            assert torch.equal(twin(input), layer.fuse()(input))
        assert layer.fuse().double()(input.double()).dtype == torch.float64
        fused = Delays(4, 3, 6, **form).fuse()
        fused.load_state_dict(layer.fuse().state_dict())
        assert torch.equal(fused(input), layer.fuse()(input))


class TestDelays:
    def test_the_sign(self):
        layer = Delays(1, 3, 4).eval()
        layer.conv.weight.data.fill_(1)
        layer.conv.positions.data.copy_(torch.tensor([2.0, 0.4, -1.6]).view(1, 3, 1, 1))
        assert layer.delays.flatten().tolist() == [0, 2, 4]
        impulse = torch.zeros(1, 1, 6)
        impulse[..., 0] = 1
        torch.testing.assert_close(layer(impulse)[0].argmax(1), torch.tensor([0, 2, 4]))

    def test_initial_delays_are_uniform(self):
        layer = Delays(100, 100, 10)
        exact = 5 - layer.conv.positions.detach().flatten()
        assert exact.min() >= 0 and exact.max() <= 10
        assert torch.histc(exact, 5, 0, 10) == pytest.approx(2000, rel=0.12)
        assert (layer.conv.sigma == 5).all()

    def test_sigma_is_set_and_not_trained(self):
        layer = Delays(4, 3, 6)
        layer.set_sigma(0.7)
        layer(spikes(2, 4, 9)).sum().backward()
        assert layer.conv.sigma.grad is None and (layer.conv.sigma == 0.7).all()

    def test_eval_writes_to_no_parameter(self):
        layer = Delays(4, 3, 6)
        before = {k: (v.clone(), v._version) for k, v in layer.named_parameters()}
        layer.eval()(spikes(2, 4, 9))
        layer.fuse(), layer.to_numpy(), layer.train()
        assert all(
            torch.equal(v, before[k][0]) and v._version == before[k][1] for k, v in layer.named_parameters()
        )

    def test_an_optimizer_keeps_delays_in_range(self):
        layer = Delays(4, 3, 6)
        optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], 1e4)
        layer(spikes(2, 4, 9)).square().sum().backward()
        optimizer.step()
        assert layer.conv.positions.abs().max() == 3
        assert layer.delays.min() >= 0 and layer.delays.max() <= 6

    def test_fixed_delays_stay_and_are_one_frame_wide(self):
        layer, input = Delays(4, 3, 6, learned=False), spikes(2, 4, 20)
        assert torch.equal(layer.conv.positions, layer.conv.positions.round())
        assert not layer.conv.positions.requires_grad
        assert torch.equal(layer(input), layer.eval()(input))
        assert (layer.kernel() != 0).sum() == 12

    def test_axonal_delays_are_one_per_sender(self):
        layer = Delays(4, 3, 6, axonal=True)
        assert layer.delays.shape == (4, 1, 1)
        assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 4 + 12
        table = layer.to_numpy()["delays"]
        assert (table == table[:1]).all()

    def test_numbers_for_hardware_are_rounded(self):
        layer = Delays(1, 1, 6)
        layer.conv.positions.data.fill_(-0.9)  # a delay of 3.9 frames
        table = layer.to_numpy()
        assert table["delays"].dtype == np.int64 and table["delays"].item() == 4
        assert table["weights"].item() == layer.conv.weight.item()

    def test_repr_can_be_typed(self):
        layer = Delays(4, 3, 6, kernel_count=2, axonal=True, tail=3)
        assert repr(layer).splitlines()[0] == "Delays("
        assert layer.extra_repr() == "4, 3, max_delay=6, kernel_count=2, tail=3, axonal=True"
        assert layer.fuse().extra_repr() == "4, 3, max_delay=6, kernel_count=2, tail=3"

    @pytest.mark.parametrize("max_delay", [0, 1, 7, -2, 2.0])
    def test_max_delay_is_checked(self, max_delay):
        with pytest.raises(ValueError, match="max_delay must be an even number of frames, at least 2"):
            Delays(4, 3, max_delay)

    def test_tail_is_checked(self):
        with pytest.raises(ValueError, match="tail must be a number of frames, 0 or more, got -1"):
            Delays(4, 3, 6, tail=-1)

    @pytest.mark.parametrize("training", [True, False])
    def test_other_shapes_are_refused(self, training):
        layer = Delays(4, 3, 6).train(training)
        for runs in (layer, layer.fuse()):
            for shape in ((2, 5, 9), (80, 3, 9), (4, 9)):
                with pytest.raises(ValueError, match=r"spikes must be \(batch, 4, time\), got \("):
                    runs(torch.zeros(shape))
            for shape in ((2, 3), (2, 4, 1), (4,)):
                with pytest.raises(ValueError, match=r"spikes must be \(batch, 4\), got \("):
                    runs.step(torch.zeros(shape))


class TestFft:
    def test_large_batches_are_trained_with_it(self):
        layer, input = Delays(4, 3, 6).double(), spikes(64, 4, 20).double()
        outputs = [layer(input), torch.cat([layer(half) for half in input.split(32)])]
        grads = [torch.autograd.grad(out.square().sum(), layer.conv.positions)[0] for out in outputs]
        torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)

    def test_a_model_says_the_same_of_an_example_in_any_batch(self):
        layer, input = Delays(4, 3, 6).eval(), spikes(64, 4, 20)
        torch.testing.assert_close(layer(input)[:2], layer(input[:2]), rtol=0, atol=1e-6)


class TestNarrowed:
    def test_shrinks_by_a_constant_factor_in_the_first_quarter(self):
        sigmas = [narrowed(epoch, 40, 12.0) for epoch in range(40)]
        assert sigmas[0] == 12 and sigmas[10:] == [0.23] * 30
        ratios = [b / a for a, b in pairwise(sigmas[:11])]
        assert ratios == pytest.approx([(0.23 / 12) ** 0.1] * 10)

    def test_a_short_training_is_narrow_from_the_start(self):
        assert narrowed(0, 3, 12.0) == 0.23


class TestAuthorsLayer:
    """Live, in float64: the authors' ``Dcls1d``, padded as their network does."""

    def pair(self, sigma):
        theirs = AuthorsDcls1d(6, 5, 1, dilated_kernel_size=13, bias=False, version="gauss").double()
        torch.nn.init.uniform_(theirs.P, -6, 6)
        torch.nn.init.constant_(theirs.SIG, sigma)
        ours = Delays(6, 5, 12, tail=6).double()
        ours.load_state_dict({f"conv.{k}": v for k, v in theirs.state_dict().items()})
        return theirs, ours

    @pytest.mark.parametrize("sigma", [6.0, 1.5, 0.23])
    def test_outputs_and_gradients(self, sigma):
        theirs, ours = self.pair(sigma)
        input = spikes(3, 6, 40).double()
        expected = theirs(F.pad(input, (12, 6)))
        torch.testing.assert_close(ours(input), expected, rtol=1e-12, atol=1e-12)
        ours(input).square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(ours.conv.weight.grad, theirs.weight.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.conv.positions.grad, theirs.P.grad, rtol=1e-11, atol=1e-11)

    def test_evaluation_form(self):
        theirs, ours = self.pair(3.0)
        theirs, ours = theirs.float().eval(), ours.float().eval()
        with torch.no_grad():
            theirs.P.round_()
            theirs.SIG.zero_()
        theirs.version = theirs.DCK.version = "max"
        input = spikes(3, 6, 40)
        assert torch.equal(ours(input), theirs(F.pad(input, (12, 6))))
