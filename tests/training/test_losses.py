"""The losses against cases worked by hand, by their gradients, and on a problem whose optimum is known."""

from __future__ import annotations

import pytest
import torch

from training.losses import (
    LossWeights,
    critic_loss,
    dmd_gradient,
    dmd_loss,
    flow_gradient,
    flow_loss,
    flow_regression_loss,
    frame_weights,
    ode_loss,
    regression_loss,
    total_loss,
)


def video(*frames: float) -> torch.Tensor:
    """One sample, one channel, one pixel: [1,1,F,1,1]."""
    return torch.tensor(frames).view(1, 1, -1, 1, 1)


def test_dmd_gradient_by_hand():
    x, fake, real = video(1.0, 3.0), video(2.0, 5.0), video(0.0, 1.0)
    # mean|x - real| = (1 + 2) / 2; fake - real = 2, 4
    assert torch.allclose(dmd_gradient(x, fake, real), video(2 / 1.5, 4 / 1.5))


def test_dmd_is_normalised_for_each_sample_alone():
    x, fake, real = (torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(3))
    both = dmd_gradient(x, fake, real)
    scaled = [t.clone() for t in (x, fake, real)]
    for t in scaled:
        t[1] *= 10
    assert torch.allclose(dmd_gradient(*scaled), both, atol=1e-5)  # scale cancels, and the other sample is untouched


def test_dmd_where_the_student_is_at_the_teacher_is_zero_and_not_nan():
    x = torch.ones(1, 2, 3, 2, 2)
    assert torch.equal(dmd_gradient(x, x, x), torch.zeros_like(x))


def test_gradients_carry_no_graph_and_losses_have_the_gradient_they_promise():
    x = torch.randn(2, 3, 4, 2, 2, requires_grad=True)
    g = dmd_gradient(x, torch.randn_like(x), torch.randn_like(x))
    assert not g.requires_grad
    dmd_loss(x, g).backward()
    assert torch.allclose(x.grad, g / x.numel(), atol=1e-7)


def test_bf16_is_computed_in_float32():
    x, fake, real = (torch.randn(1, 2, 3, 2, 2).bfloat16() for _ in range(3))
    assert dmd_gradient(x, fake, real).dtype == torch.float32
    assert torch.allclose(dmd_gradient(x, fake, real), dmd_gradient(x.float(), fake.float(), real.float()))


def test_flow_gradient_by_hand():
    x, fake, real = video(0.0, 1.0, 3.0), video(0.0, 2.0, 3.0), video(0.0, 0.0, 4.0)
    # differences: x 1, 2; fake 2, 1; real 0, 4. mean|dx - dreal| = (1 + 2) / 2
    assert torch.allclose(flow_gradient(x, fake, real), video(2 / 1.5, -3 / 1.5))


def test_flow_sees_motion_only():
    x, fake, real = (torch.randn(1, 2, 5, 2, 2) for _ in range(3))
    moved = fake + torch.randn(1, 2, 1, 2, 2)  # another picture, the same motion
    assert torch.allclose(flow_gradient(x, moved, real), flow_gradient(x, fake, real), atol=1e-5)
    assert torch.equal(flow_gradient(x, fake, fake), torch.zeros(1, 2, 4, 2, 2))


def test_frame_weights_by_hand():
    w = frame_weights(video(1.0, 2.0, 0.0))  # m = 1, 4, 0
    growth = torch.tensor([1.0, 1.2, 1.44])
    expected = 0.7 * torch.tensor([1.2, 2.0, 2.0]) + 0.3 * growth / growth.mean()
    assert torch.allclose(w, expected[None])
    assert torch.isfinite(frame_weights(video(0.0, 0.0))).all()


def test_flow_loss_by_hand_and_by_gradient():
    x = video(0.0, 1.0, 3.0).requires_grad_()
    g, w = video(0.5, -1.0), torch.tensor([[1.0, 3.0]])
    loss = flow_loss(x, g, w)
    assert loss.item() == pytest.approx((0.25 + 3 * 1.0) / 2)
    loss.backward()
    # d/d(dx_j) = 2 w_j g_j / 2; frame f gains from the pair that ends at it and loses to the one that starts at it
    assert torch.allclose(x.grad.flatten(), torch.tensor([-0.5, 0.5 + 3.0, -3.0]))
    assert flow_loss(x, g).item() == pytest.approx((0.25 + 1.0) / 2)


def test_a_single_frame_has_no_motion():
    with pytest.raises(ValueError, match="at least 2 latent frames"):
        flow_gradient(*(torch.randn(1, 2, 1, 2, 2) for _ in range(3)))


def test_regression_by_hand_and_by_gradient():
    x, teacher = video(1.0, 3.0).requires_grad_(), video(0.0, 1.0).requires_grad_()
    loss = regression_loss(x, teacher)
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    assert torch.allclose(x.grad.flatten(), torch.tensor([1.0, 2.0]))  # 2 (x - teacher) / 2
    assert teacher.grad is None


def test_flow_regression_compares_motion_alone():
    x, teacher = video(0.0, 1.0, 3.0).requires_grad_(), video(5.0, 5.0, 9.0).requires_grad_()
    loss = flow_regression_loss(x, teacher)  # dx 1, 2 against 0, 4
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    # d/d(dx) = 1, -2; frame f gains from the pair that ends at it and loses to the one that starts at it
    assert torch.allclose(x.grad.flatten(), torch.tensor([-1.0, 3.0, -2.0]))
    assert teacher.grad is None
    assert flow_regression_loss(x + 7, teacher).item() == pytest.approx(2.5)
    with pytest.raises(ValueError, match="at least 2 latent frames"):
        flow_regression_loss(video(1.0), video(2.0))


def test_critic_by_hand_and_by_gradient():
    flow, x0, noise = video(1.0, 0.0).requires_grad_(), video(1.0, 2.0).requires_grad_(), video(3.0, 1.0)
    loss = critic_loss(flow, x0, noise)  # targets 2, -1
    assert loss.item() == pytest.approx((1 + 1) / 2)
    loss.backward()
    assert torch.allclose(flow.grad.flatten(), torch.tensor([-1.0, 1.0]))
    assert x0.grad is None  # the critic learns the student, it does not pull it


def test_ode_by_hand_and_by_gradient():
    flow, point, clean = video(2.0, -2.0).requires_grad_(), video(1.0, 1.0), video(1.0, 1.0)
    sigma = torch.tensor([0.5, 1.0]).view(1, 1, 2, 1, 1)
    loss = ode_loss(flow, point, sigma, clean)  # x0 = 0, 3: errors -1, 2
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    assert torch.allclose(flow.grad.flatten(), torch.tensor([0.5, -2.0]))  # -sigma error


def test_the_total_is_equation_12():
    losses = {"dmd": 2.0, "regression": 3.0, "flow": 5.0, "flow_regression": 7.0}
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in losses.items()}
    weights = LossWeights(spatial=4.0, regression=0.5, flow=3.0, gamma=2.0)
    total, terms = total_loss(weights, leaves.__getitem__)
    assert total.item() == pytest.approx(4 * 2 + 0.5 * 3 + 2 * (3 * 5 + 7))
    assert {name: term.item() for name, term in terms.items()} == losses
    total.backward()
    assert {name: leaf.grad.item() for name, leaf in leaves.items()} == {
        "dmd": 4.0, "regression": 0.5, "flow": 6.0, "flow_regression": 2.0,
    }  # fmt: skip


def test_terms_that_do_not_weigh_are_not_computed():
    asked: list[str] = []
    total_loss(LossWeights(gamma=0.0), lambda name: asked.append(name) or torch.ones(()))
    assert asked == ["dmd"]
    assert not LossWeights(gamma=0.0).needs_teacher_rollout
    assert LossWeights().needs_teacher_rollout


@pytest.mark.parametrize(
    "wrong", [{"spatial": -1.0}, {"gamma": float("nan")}, {"spatial": 0.0, "regression": 0.0, "gamma": 0.0}]
)
def test_wrong_weights_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="loss weights"):
        LossWeights(**wrong)


def test_dmd_with_perfect_scores_moves_a_gaussian_student_onto_the_teacher():
    """Student N(m, s), teacher N(2, 0.5): with exact denoisers of both the optimum is the teacher."""
    generator = torch.Generator().manual_seed(0)
    m, log_s = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([m, log_s], lr=0.02)

    def denoised(x_t, sigma, mean, std):
        """E[x0 | x_t] for x0 ~ N(mean, std) and x_t = (1 - sigma) x0 + sigma noise."""
        gain = (1 - sigma) * std**2 / ((1 - sigma) ** 2 * std**2 + sigma**2)
        return mean + gain * (x_t - (1 - sigma) * mean)

    for _ in range(600):
        x = m + log_s.exp() * torch.randn(256, 1, generator=generator)
        sigma = 0.02 + 0.96 * torch.rand(256, 1, generator=generator)
        x_t = (1 - sigma) * x.detach() + sigma * torch.randn(256, 1, generator=generator)
        fake = denoised(x_t, sigma, m.detach(), log_s.detach().exp())
        g = dmd_gradient(x, fake, denoised(x_t, sigma, 2.0, 0.5))
        optimizer.zero_grad()
        dmd_loss(x, g).backward()
        optimizer.step()
    assert m.item() == pytest.approx(2.0, abs=0.1)
    assert log_s.exp().item() == pytest.approx(0.5, abs=0.1)


def test_dmd_with_a_learned_critic_moves_a_gaussian_student_onto_the_teacher():
    """The whole alternation: the critic is trained by its own loss on what the student makes, and the student by the
    difference of the scores."""
    generator = torch.Generator().manual_seed(0)
    mean, log_std = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    critic = torch.nn.Parameter(torch.tensor([0.0, 0.0]))  # the student's mean and log std, as the critic believes
    optimizers = torch.optim.Adam([mean, log_std], lr=0.02, betas=(0.5, 0.999)), torch.optim.Adam([critic], lr=0.1)

    def denoised(x_t, sigma, mean, std):
        gain = (1 - sigma) * std**2 / ((1 - sigma) ** 2 * std**2 + sigma**2)
        return mean + gain * (x_t - (1 - sigma) * mean)

    def draw():
        x = mean + log_std.exp() * torch.randn(512, 1, generator=generator)
        sigma = 0.02 + 0.96 * torch.rand(512, 1, generator=generator)
        noise = torch.randn(512, 1, generator=generator)
        return x, sigma, noise, (1 - sigma) * x.detach() + sigma * noise

    for step in range(2000):
        x, sigma, noise, x_t = draw()
        flow = (x_t - denoised(x_t, sigma, critic[0], critic[1].exp())) / sigma
        optimizers[1].zero_grad()
        critic_loss(flow, x, noise).backward()
        optimizers[1].step()
        if step % 2:
            continue
        x, sigma, noise, x_t = draw()
        fake = denoised(x_t, sigma, critic[0].detach(), critic[1].detach().exp())
        optimizers[0].zero_grad()
        dmd_loss(x, dmd_gradient(x, fake, denoised(x_t, sigma, 2.0, 0.5))).backward()
        optimizers[0].step()
    assert mean.item() == pytest.approx(2.0, abs=0.1)
    assert log_std.exp().item() == pytest.approx(0.5, abs=0.1)
