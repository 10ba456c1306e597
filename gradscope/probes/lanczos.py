"""Lanczos's method on many symmetric matrices at once: extreme eigenvalues with residuals, and spectral densities."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.functional import norm_and_unit

#: Computes ``H v`` of N symmetric matrices at once: ``(N, D)`` to ``(N, D)``.
Product = Callable[[Tensor], Tensor]

#: A residual below this share of the matrix's norm is rounding: the vectors found so far span an invariant subspace.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues of largest absolute value of N matrices, of either sign, in descending order.

    ``values`` ``(N, k)``. ``residuals`` ``(N, k)`` are ``|H u - value u|`` of the unit vectors u that were reached, in
    the unit of the values; they include rounding, estimated from the asymmetry of the products. ``vectors``
    ``(N, k, D)`` are these u, orthogonal to each other.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Quadrature:
    """Gauss quadrature of the spectrum of N matrices, from one starting vector each.

    ``nodes`` ``(N, m)`` are ascending; ``weights`` ``(N, m)`` sum to 1. ``sum of weights * f(nodes)`` is ``v' f(H) v``
    for the unit starting vector v, exact for polynomials f of degree below ``2 m``. Its mean over random v is ``trace
    f(H) / D`` (Golub and Welsch 1969; Ubaru, Chen and Saad 2017). ``widths`` ``(N, m)`` are the residuals of the nodes:
    an eigenvalue lies that close. All are float64, on the CPU.
    """

    nodes: Tensor
    weights: Tensor
    widths: Tensor


class Krylov:
    """The Krylov spaces of N symmetric matrices, each grown from its unit vector ``start`` ``(N, D)``.

    Each new vector is orthogonalised twice against all earlier ones, so that no eigenvalue appears again as a ghost. If
    the vectors span an invariant subspace, which happens soon with a matrix of low rank, the search continues with a
    random vector orthogonal to them. So each eigenvalue is found with its multiplicity. Memory: ``N * D`` numbers per
    step.
    """

    def __init__(self, product: Product, start: Tensor, stream: torch.Generator, *, most: int) -> None:
        """``stream`` draws the vectors that continue from an invariant subspace; at most ``most`` products are made."""
        count, size = start.shape
        self._product, self._stream = product, stream
        self._basis = start.new_empty(count, min(most, size), size)
        self._basis[:, 0] = start
        self._known = 1
        self._diagonal: list[Tensor] = []
        self._beside: list[Tensor] = []
        self._scale = torch.zeros(len(start), dtype=torch.float64)
        self._closed = torch.zeros(len(start), dtype=torch.bool)
        self._asymmetry = torch.zeros(len(start), dtype=torch.float64)

    @property
    def steps(self) -> int:
        """Number of products made so far."""
        return len(self._diagonal)

    def grow(self, to: int, *, beyond: bool = True) -> None:
        """Make products until there are ``to`` of them, or the most allowed.

        With ``beyond`` False, stop once all vectors have reached an invariant subspace, where the quadrature is exact.
        """
        count, most, size = self._basis.shape
        while self.steps < min(to, most) and (beyond or not self._closed.all()):
            last = self._basis[:, self.steps]
            image = self._product(last)
            if self._beside:  # <q_j-1, H q_j> equals <q_j, H q_j-1> up to rounding
                back = torch.linalg.vecdot(image.double(), self._basis[:, self.steps - 1].double()).cpu()
                self._asymmetry = torch.maximum(self._asymmetry, (back - self._beside[-1]).abs())
            self._diagonal.append(torch.linalg.vecdot(image.double(), last.double()).cpu())
            length, following = norm_and_unit(self._orthogonal(image))
            length = length.double().cpu()
            self._scale = torch.maximum(self._scale, torch.maximum(self._diagonal[-1].abs(), length))
            ended = length <= _ROUNDING * self._scale
            if bool(ended.any()) and self.steps < most:
                drawn = torch.randn((count, size), generator=self._stream).to(following)
                following = torch.where(ended[:, None].to(following.device), self._fresh(drawn), following)
            self._closed |= ended
            self._beside.append(torch.where(ended, 0.0, length))
            if self.steps < most:
                self._basis[:, self.steps] = following
                self._known += 1

    def _orthogonal(self, vectors: Tensor) -> Tensor:
        """Remove from ``vectors`` ``(N, D)`` their parts along the basis."""
        basis = self._basis[:, : self._known]
        for _ in range(2):
            vectors = vectors - (basis.mT @ (basis @ vectors[:, :, None])).squeeze(2)
        return vectors

    def _fresh(self, drawn: Tensor) -> Tensor:
        """Make ``drawn`` orthogonal to the basis and normalise; twice, because of rounding in the small remainder."""
        for _ in range(2):
            drawn = norm_and_unit(self._orthogonal(norm_and_unit(drawn)[1]))[1]
        return drawn

    def _decomposed(self) -> tuple[Tensor, Tensor]:
        """Compute eigenvalues ``(N, m)`` and eigenvectors ``(N, m, m)``, in columns, of the tridiagonal matrices."""
        diagonal = torch.stack(self._diagonal, dim=1)
        whole = torch.diag_embed(diagonal)
        if self.steps > 1:
            beside = torch.stack(self._beside[: self.steps - 1], dim=1)
            whole = whole + torch.diag_embed(beside, offset=1) + torch.diag_embed(beside, offset=-1)
        values, vectors = torch.linalg.eigh(whole)
        return values, vectors

    def quadrature(self) -> Quadrature:
        """Compute the Gauss quadrature of the starting vectors."""
        values, vectors = self._decomposed()
        widths = vectors[:, -1].abs() * self._beside[-1][:, None]
        return Quadrature(values, vectors[:, 0].square(), widths)

    def extremes(self, most: int) -> tuple[Tensor, Tensor]:
        """Compute the ``most`` eigenvalues of largest absolute value and residuals, ``(N, k)`` each, k <= steps."""
        values, vectors, chosen = self._chosen(most)
        return values, self._residuals(vectors, chosen)

    def _chosen(self, most: int) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = self._decomposed()
        chosen = values.abs().argsort(dim=1, descending=True, stable=True)[:, :most]
        return values.gather(1, chosen), vectors, chosen

    def _residuals(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        """Compute the residuals ``beta_m |last entry|``; ``H u - value u`` lies along the next basis vector."""
        last = vectors[:, -1].gather(1, chosen).abs()
        residuals: Tensor = last * self._beside[-1][:, None]
        return residuals

    def eigenpairs(self, most: int) -> Eigenpairs:
        """Compute the ``most`` eigenvalues of largest absolute value with their vectors."""
        values, vectors, chosen = self._chosen(most)
        weights = vectors.gather(2, chosen[:, None, :].expand(-1, self.steps, -1)).to(self._basis)
        directions = weights.mT @ self._basis[:, : self.steps]
        residuals = torch.hypot(self._residuals(vectors, chosen), self._asymmetry[:, None])
        return Eigenpairs(values, residuals, directions)
