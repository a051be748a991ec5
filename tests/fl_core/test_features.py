"""What a reward head reads: pooling and whitening by hand."""

from __future__ import annotations

import pytest
import torch

from fl_core.errors import AdapterError
from fl_core.features import MOST_DEPTHS, POWER, SHRINKAGE, FeatureMap, _logistic

FINAL = torch.arange(12.0).view(2, 3, 2)  # two rows of three positions of width two
LENGTHS = torch.tensor([3, 2])
RESPONSE = torch.tensor([[False, True, True], [False, True, False]])


def test_pooling_by_hand() -> None:
    last = FeatureMap.plain(2)
    assert last(FINAL, LENGTHS, RESPONSE).tolist() == [[4, 5], [8, 9]]
    both = FeatureMap.plain(2, "last-mean")
    assert both.width == 4
    assert both(FINAL, LENGTHS, RESPONSE).tolist() == [[4, 5, 3, 4], [8, 9, 8, 9]]


def test_padding_beyond_a_row_and_a_wider_mask_are_not_read() -> None:
    both, poisoned = FeatureMap.plain(2, "last-mean"), FINAL.clone()
    poisoned[1, 2] = 1e6
    wider = torch.cat([RESPONSE, torch.zeros(2, 4, dtype=torch.bool)], dim=1)
    assert torch.equal(both(poisoned, LENGTHS, wider), both(FINAL, LENGTHS, RESPONSE))


def test_a_text_without_a_response_has_a_mean_of_zero() -> None:
    both = FeatureMap.plain(2, "last-mean")(FINAL, LENGTHS, torch.zeros(2, 3, dtype=torch.bool))
    assert both[:, 2:].tolist() == [[0, 0], [0, 0]]


def test_all_depths_are_read_up_to_a_bound() -> None:
    means = torch.arange(2.0 * 3 * 2).view(2, 3, 2)
    layers = FeatureMap.plain(2, "layers", depths=3)
    assert layers.width == 2 * (1 + 3)
    assert layers(FINAL, LENGTHS, RESPONSE, means)[1].tolist() == [8, 9, 6, 7, 8, 9, 10, 11]
    deep = FeatureMap.plain(2, "layers", depths=31)
    assert len(deep.depths) == MOST_DEPTHS and (deep.depths[0], deep.depths[-1]) == (0, 30)
    with pytest.raises(AdapterError, match="number of depths"):
        FeatureMap.plain(2, "layers")
    with pytest.raises(AdapterError, match="means at all depths"):
        layers(FINAL, LENGTHS, RESPONSE)


def test_a_narrowed_map_keeps_the_leading_coordinates_and_their_size() -> None:
    pooled = torch.randn(300, 6, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [5.0, 4, 3, 2, 1, 1]
    )
    fitted = FeatureMap.plain(6).fitted(pooled)
    narrow = fitted.narrowed(2)
    assert fitted.narrowed(6) is fitted
    phi, few = fitted.scaled(pooled), narrow.scaled(pooled)
    ratio = few / phi[:, :2]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4)
    assert float(few.square().sum(1).mean()) == pytest.approx(2, rel=1e-3)
    assert FeatureMap.plain(6).narrowed(2).scaled(pooled).tolist() == pooled[:, :2].tolist()


def test_scaling_centres_decorrelates_and_orders_by_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 4.0
    fitted = FeatureMap.plain(6).fitted(pooled)
    final = pooled[:, None]
    phi = fitted(final, torch.ones(500, dtype=torch.int64), torch.ones(500, 1, dtype=torch.bool))
    assert phi.mean(0).abs().max() < 1e-4
    covariance = phi.T @ phi / 500
    assert (covariance - torch.diag(covariance.diag())).abs().max() < 1e-4
    variance = torch.linalg.eigvalsh((pooled - pooled.mean(0)).T @ (pooled - pooled.mean(0)) / 500).flip(0)
    wanted = variance / (variance + SHRINKAGE * variance.mean()) ** (2 * POWER)
    assert covariance.diag().tolist() == pytest.approx((6 * wanted / wanted.sum()).tolist(), rel=1e-3)
    assert float(phi.square().sum(1).mean()) == pytest.approx(6, rel=1e-3)


def test_directions_that_public_texts_lack_are_not_blown_up() -> None:
    """Fewer texts than dimensions, and a constant column."""
    pooled = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    pooled[:, 3] = 2.0
    fitted = FeatureMap.plain(8).fitted(pooled)
    assert fitted.whiten is not None
    assert fitted.whiten.isfinite().all()
    phi = fitted.scaled(pooled + torch.randn(5, 8, generator=torch.Generator().manual_seed(3)))
    assert float(phi.square().sum(1).mean()) < 8 * 8


def two_domains(apart: float, seed: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """(pooled [400, 8], which are of values pairs): two clouds whose means are ``apart``."""
    generator = torch.Generator().manual_seed(seed)
    domain = torch.arange(400) % 2 == 1
    pooled = torch.randn(400, 8, generator=generator) * torch.linspace(3, 1, 8)
    pooled[:, 0] += apart * domain
    return pooled, domain


def test_a_gated_map_reads_each_coordinate_twice_and_keeps_its_size() -> None:
    pooled, domain = two_domains(4.0)
    fitted = FeatureMap.plain(8).fitted(pooled, domain)
    assert fitted.whiten is not None and fitted.centre is not None and fitted.gate is not None
    phi = fitted.scaled(pooled).view(400, 4, 2)
    plain = (pooled - fitted.centre) @ fitted.whiten
    share = torch.sigmoid((pooled - fitted.centre) @ fitted.gate[:-1] + fitted.gate[-1])
    assert torch.allclose(phi.square().sum(2), plain.square(), rtol=1e-3, atol=1e-5)
    assert torch.allclose(phi[:, :, 1], plain * share.sqrt()[:, None], rtol=1e-3, atol=1e-5)
    assert float(phi.square().sum((1, 2)).mean()) == pytest.approx(8, rel=1e-3)


def test_texts_of_unlike_domains_hardly_meet_and_others_share_all() -> None:
    """The kernel is that of the coordinates times how much the two texts' domains overlap."""
    far, domain = two_domains(60.0)
    fitted = FeatureMap.plain(8).fitted(far, domain)
    phi = fitted.scaled(far)
    within = (phi[0] @ phi[2::2].T).abs().mean()
    assert float((phi[0] @ phi[1::2].T).abs().mean()) < 0.02 * float(within)
    same, domain = two_domains(0.0)
    fitted = FeatureMap.plain(8).fitted(same, domain)
    assert fitted.whiten is not None and fitted.centre is not None
    phi, plain = fitted.scaled(same), (same - fitted.centre) @ fitted.whiten
    ratio = (phi @ phi.T) / (plain @ plain.T)
    assert float(ratio.median()) > 0.98


def test_one_domain_has_no_gate() -> None:
    pooled, domain = two_domains(4.0)
    for apart in (None, torch.zeros_like(domain), torch.ones_like(domain)):
        fitted = FeatureMap.plain(8).fitted(pooled, apart)
        assert fitted.gate is None
        assert torch.equal(fitted.scaled(pooled), FeatureMap.plain(8).fitted(pooled).scaled(pooled))


@pytest.mark.parametrize("apart", [0.5, 60.0])
def test_the_gate_is_the_logistic_regression_with_balanced_classes(apart: float) -> None:
    """A zero gradient of the balanced ridge loss, and finite numbers where domains are separable."""
    x, domain = two_domains(apart)
    weights = _logistic(x, domain, 1e-2).double()
    rows, y = torch.cat([x, torch.ones(400, 1)], 1).double(), domain.double()
    gradient = rows.T @ (torch.sigmoid(rows @ weights) - y) / 400
    gradient[:-1] += 1e-2 * weights[:-1]
    assert float(gradient.abs().max()) < 1e-4
    assert float(((rows @ weights > 0) == domain).double().mean()) > (0.5 if apart < 1 else 0.99)


@pytest.mark.parametrize("width", [1, 3, 4, 7])
def test_a_gated_map_is_narrowed_too(width: int) -> None:
    pooled, domain = two_domains(4.0)
    fitted = FeatureMap.plain(8).fitted(pooled, domain)
    few = fitted.narrowed(width).scaled(pooled)
    ratio = few / fitted.scaled(pooled)[:, :width]
    assert few.shape == (400, width)
    assert torch.allclose(ratio, ratio.median().expand_as(ratio), rtol=1e-2)
    assert float(few.square().sum(1).mean()) == pytest.approx(width, rel=1e-3)


def test_far_from_all_public_texts_gradients_stay_finite() -> None:
    pooled, domain = two_domains(60.0)
    fitted = FeatureMap.plain(8).fitted(pooled, domain)
    for sign in (-1.0, 1.0):
        far = torch.full((1, 8), sign * 1e4, requires_grad=True)
        fitted.scaled(far).sum().backward()
        assert far.grad is not None and bool(far.grad.isfinite().all())
