"""A small variational autoencoder of features: how far a feature is from a set of them.

Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014.
"""

import torch
from torch import Tensor, nn


class FeatureAutoencoder(nn.Module):
    """(B, D) features through a narrow Gaussian code and back, over the set's own centre and scale."""

    def __init__(self, features: Tensor, code: int) -> None:
        """Centre and scale are those of ``features`` (N, D)."""
        super().__init__()
        width = features.shape[1]
        spread = features.std(0, correction=min(1, len(features) - 1))  # (D,), zero of a single one
        self.centre, self.scale = features.mean(0), spread.mean().clamp_min(1e-6)
        self.encoder = nn.Sequential(nn.Linear(width, 2 * code), nn.ReLU(), nn.Linear(2 * code, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, 2 * code), nn.ReLU(), nn.Linear(2 * code, width))
        self.to(features.device)

    def distance(self, features: Tensor) -> Tensor:
        """(B,) mean squared error of what comes back, through the code's mean, in units of the set's variance."""
        scaled = (features - self.centre) / self.scale
        mean, _ = self.encoder(scaled).chunk(2, dim=-1)
        error: Tensor = (self.decoder(mean) - scaled).square().mean(-1)
        return error

    def fit(self, features: Tensor, steps: int) -> "FeatureAutoencoder":
        """Maximise the evidence's lower bound on random batches of ``features`` (N, D); frozen afterwards."""
        optimiser = torch.optim.Adam(self.parameters(), lr=2e-3)
        scaled = (features - self.centre) / self.scale
        for _ in range(steps):
            batch = scaled[torch.randint(len(scaled), (min(128, len(scaled)),), device=scaled.device)]
            mean, spread = self.encoder(batch).chunk(2, dim=-1)
            code = mean + torch.randn_like(mean) * (spread / 2).exp()
            divergence = (mean.square() + spread.exp() - 1 - spread).sum(-1).mean() / 2
            loss = (self.decoder(code) - batch).square().sum(-1).mean() + divergence
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return self.requires_grad_(False)
