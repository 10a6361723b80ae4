"""A Gaussian mixture per class over features, kept up to date while the features move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information.checks import require_choice, require_counts, require_indices, require_rows
from sfumato.information.gaussian import shrink
from sfumato.information.grouping import Total, add_outer_products, alone, group_products, group_sizes
from sfumato.information.rate import mixture_rate

Covariance = Literal["isotropic", "diagonal", "full"]
_SAMPLES_PER_COMPONENT = 20
_CHUNK = 2048
_SPLIT = 0.01


class ClassMixture(nn.Module):
    """M Gaussian components for each of K classes; all state in buffers.

    Started by k-means++ (Arthur & Vassilvitskii 2007) on a sample of each class, refreshed by one Lloyd pass over
    a stream of features, warm-started. Memory does not grow with the data: a pass keeps sums only. A component that a
    pass leaves empty is re-seeded for what comes next by splitting a full one of its class (Linde, Buzo & Gray 1980): a
    little way from its center towards its farthest feature, with its covariance. On that feature itself, in many
    dimensions, it would keep hardly any other. What the pass found stays as it is, for the weight of an empty component
    is 0. Between passes, :meth:`track` follows the features batch by batch. For a mixture that knows no classes, let K
    be 1 and y be 0.

    Args:
        num_classes: K.
        components: M per class.
        dim: Dimension D of a flattened feature.
        covariance: ``isotropic`` (one variance a component: the mean over dimensions), ``diagonal`` or ``full``, whose
            K·M·D² numbers are the largest thing here.

    Attributes:
        covariance: Their form.
        means: (K, M, D).
        covariances: About the centers: (K, M), (K, M, D) or (K, M, D, D), by the form. A component that was re-seeded
            has that of the one that was split for it. A ``full`` one needs two features: with fewer, another component
            has that of its class, about the class's mean.
        weights: (K, M), summing to 1 within a class.
        counts: (K,), images of each class in the last pass.
        ready: Whether there was a pass.

    Raises:
        InputError: No class, component or dimension, or an unknown form of covariance.
    """

    means: Tensor
    covariances: Tensor
    weights: Tensor
    counts: Tensor
    ready: Tensor

    def __init__(self, num_classes: int, components: int, dim: int, covariance: Covariance = "isotropic") -> None:
        super().__init__()
        require_counts(num_classes=num_classes, components=components, dim=dim)
        require_choice("covariance", covariance, get_args(Covariance))
        self.covariance: Covariance = covariance
        form = {"isotropic": (), "diagonal": (dim,), "full": (dim, dim)}[covariance]
        self.register_buffer("means", torch.zeros(num_classes, components, dim))
        self.register_buffer("covariances", torch.zeros(num_classes, components, *form))
        self.register_buffer("weights", torch.full((num_classes, components), 1 / components))
        self.register_buffer("counts", torch.zeros(num_classes))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @property
    def shares(self) -> Tensor:
        """π_i of every component, (K·M,): the share of its class in the last pass times its weight in the class."""
        total = self.counts.sum().clamp_min(1)
        return (self.counts.unsqueeze(1) / total * self.weights).flatten()

    def rate(self, noise_variance: float, *, shrinkage: float = 0.0) -> float:
        """R of theorem 2 in nats for a channel with noise of that variance, in double precision.

        Args:
            noise_variance: σ² > 0.
            shrinkage: Of the covariances; see :func:`~sfumato.information.shrink`.

        Raises:
            InputError: There was no refresh yet, a σ² that is not above 0, or a shrinkage that is no share.
        """
        require_refreshed(self)
        shares = self.shares.double()
        covariances = shrink(self.covariances.double().flatten(0, 1), shrinkage)
        return float(mixture_rate(shares / shares.sum(), covariances, noise_variance, dim=self.means.shape[-1]))

    def assign(self, z: Tensor, y: Tensor) -> Tensor:
        """Nearest component of each feature's own class.

        Args:
            z: (N, D).
            y: (N,) class of each.

        Returns:
            (N,) flat component index, y·M + m.

        Raises:
            InputError: Another shape or type. Labels are not looked at.
        """
        require_rows(z, y, self.means.shape[2], self.means.dtype)
        return self._nearest()(z, y)

    def _nearest(self) -> Callable[[Tensor, Tensor], Tensor]:
        """:meth:`assign`, with what depends on the centers alone computed once."""
        # |z|² is the same for all components of a row, so the nearest is found without it. From the middle of its
        # class: far from zero the terms would cancel, and so they would if centers counted that were left behind.
        unseen = self.weights.sum(1, keepdim=True) == 0
        middle = torch.where(unseen, 1 / self.weights.shape[1], self.weights).unsqueeze(1) @ self.means
        means = self.means - middle
        offsets = means.square().sum(2) + 2 * (means * middle).sum(2)  # (K, M)

        def assign(z: Tensor, y: Tensor) -> Tensor:
            products = group_products(z.detach(), means.mT, y)
            return torch.add(offsets.index_select(0, y), products, alpha=-2).argmin(1).add_(y, alpha=offsets.shape[1])

        return assign

    @torch.no_grad()
    def refresh(self, features: Callable[[], Iterable[tuple[Tensor, Tensor]]], *, generator: torch.Generator) -> None:
        """One Lloyd pass over the features; the first time after k-means++ on the beginning of another.

        Nothing is summed over processes here, unlike in :meth:`track`: each is to give all features, not its share of
        them, and a generator in the same state. Where devices add in an order of their own, let all take the state of
        one of them afterwards.

        Args:
            features: Starts a pass over batches (z (N, D), y (N,)) of all features, each time that it is called. The
                first of each class are what k-means++ starts on, so let their order say nothing about them.
            generator: Draws the k-means++ centers.

        Raises:
            InputError: A pass without a feature, features or labels of another shape or type, labels out of range, or
                features that are not finite. A mixture that had a pass before is left as it was.
        """
        if not bool(self.ready):
            self._start(list(_first_of_each_class(self._checked(features()), *self.means.shape[:2])), generator)
        self._lloyd(self._checked(features(), _CHUNK))
        self.ready.fill_(True)

    def _checked(self, features: Iterable[tuple[Tensor, Tensor]], least: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The features in batches of ``least`` or more: a small one costs hardly less than one of a thousand."""
        seen = False
        for z, y in _in_chunks(self._in_shape(features), least):
            require_indices("y", y, len(self.means), "class")
            seen = seen or len(z) > 0
            yield z, y
        if not seen:
            raise InputError("features", "no feature in a pass", "a callable that gives all features each time")

    def _in_shape(self, features: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for z, y in features:
            require_rows(z, y, self.means.shape[2], self.means.dtype)
            yield z, y

    def _start(self, batches: list[tuple[Tensor, Tensor]], generator: torch.Generator) -> None:
        """k-means++ on the sample, for all classes at once: next center with probability ∝ squared distance."""
        z, y = _joined(batches)
        _require_sums(z)
        k, m, _ = self.means.shape
        member = torch.nn.functional.one_hot(y, k).T.to(z.dtype)  # (K, N)
        member[member.sum(1) == 0] = 1  # a class without a feature starts anywhere; its weight stays 0
        chance = member.clone()
        nearest = torch.full_like(member[0], torch.inf)
        for i in range(m):
            picks = torch.multinomial(chance.cpu(), 1, generator=_on_cpu(generator)).squeeze(1).to(z.device)
            self.means[:, i] = z[picks]
            own = self.means[:, i].index_select(0, y)  # of its class: distances to all would be quadratic in K
            nearest = torch.minimum(nearest, (z - own).square().sum(1))
            chance = member * nearest
            chance = torch.where(chance.sum(1, keepdim=True) > 0, chance, member)  # all features on the centers

    @torch.no_grad()
    def track(self, index: Tensor, *, total: Total = alone) -> tuple[Tensor, Tensor]:
        """Follow the weights by one batch (CEM, equation 5, within each class: they keep their sum of 1).

        Args:
            index: (N,) component of each feature of this process's share, as :meth:`assign` gives it.
            total: Sums over the processes that share the batch. Those that started alike stay so.

        Returns:
            b_i, features of the whole batch in each component, and n·π_i, images that the component stood for before,
            each (K·M,).
        """
        k, m = self.weights.shape
        found = total(group_sizes(index, k * m).to(self.weights.dtype)).view(k, m)
        expected = self.counts.unsqueeze(1) * self.weights
        present = found.sum(1, keepdim=True)
        # A class that the last pass saw less of than this batch holds would get a weight below 0.
        n = self.counts.unsqueeze(1).maximum(present).clamp_min(1)
        # Nor may rounding give it one: its logarithm would be NaN.
        self.weights.add_((found - present * self.weights) / n).clamp_(min=0)
        return found.flatten(), expected.flatten()

    def _lloyd(self, features: Iterable[tuple[Tensor, Tensor]]) -> None:
        k, m, d = self.means.shape
        counts, sums = self.means.new_zeros(k * m), self.means.new_zeros(k * m, d)
        squares = torch.zeros_like(self.covariances).flatten(0, 1)
        farthest, strays = self.means.new_full((k * m,), -1.0), self.means.new_zeros(k * m, d)
        flat = self.means.view(k * m, d)
        assign = self._nearest()
        for z, y in features:
            index = assign(z, y)
            # Sums of residuals, not of features: the variance below would cancel for features far from zero.
            residual = flat.index_select(0, index)
            torch.sub(z.detach(), residual, out=residual)
            distance = torch.linalg.vector_norm(residual, dim=1).square()
            counts.index_add_(0, index, torch.ones_like(distance))
            sums.index_add_(0, index, residual)
            _add_squares(squares, residual, distance, index)
            _keep_farthest(farthest, strays, distance, z, index)
        _require_sums(squares)
        shift = sums / counts.clamp_min(1).unsqueeze(1)
        self.means += shift.view(k, m, d)
        self.covariances.copy_(_about(shift, squares, counts).view_as(self.covariances))
        per_class = counts.view(k, m).sum(1)
        self.counts.copy_(per_class)
        self.weights.copy_(counts.view(k, m) / per_class.clamp_min(1).unsqueeze(1))
        self._lend_covariances(counts.view(k, m))
        self._reseed(counts.view(k, m), strays.view(k, m, d))

    def _lend_covariances(self, counts: Tensor) -> None:
        """A full covariance for each component of one feature or none: that of its class, about the class's mean.

        Its own would be 0, and nothing repairs it before the next pass, as the other forms are by the first batch:
        whatever comes to the component until then would be pulled with 1/σ². About the mean, not within components:
        which features come is not known yet, and within components of one feature each there is no variance.
        """
        if self.covariance != "full":
            return
        classes, components = (counts < 2).nonzero(as_tuple=True)
        if len(classes) == 0:
            return
        weights = self.weights.unsqueeze(1)
        offsets = self.means - weights @ self.means
        within = torch.bmm(weights, self.covariances.flatten(2)).view(-1, *self.covariances.shape[2:])
        about_mean = within.baddbmm_(offsets.mT * weights, offsets)
        self.covariances[classes, components] = about_mean[classes]

    def _reseed(self, counts: Tensor, strays: Tensor) -> None:
        """Split full components for empty ones: in each class the fullest for one, the next fullest for the next.

        Each is split once, if it holds two features: where a class has more empty ones, some wait for a later pass.
        """
        order = counts.argsort(dim=1, descending=True, stable=True)
        pairs = counts.shape[1] // 2
        full, empty = order[:, :pairs], order.flip(1)[:, :pairs]
        classes, pair = ((counts.gather(1, empty) == 0) & (counts.gather(1, full) >= 2)).nonzero(as_tuple=True)
        old, new = (classes, full[classes, pair]), (classes, empty[classes, pair])
        self.means[new] = self.means[old].lerp(strays[old], _SPLIT)
        self.covariances[new] = self.covariances[old]


def require_refreshed(mixture: ClassMixture) -> None:
    """A mixture that stands for some features; waits for the device.

    Raises:
        InputError: It has not seen any.
    """
    if not bool(mixture.counts.any()):
        raise InputError("mixture", "one that has seen no feature", "a mixture after its first refresh")


def _require_sums(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise InputError("features", "NaN, infinity, or squares that overflow", "finite features")


def _add_squares(sums: Tensor, residual: Tensor, distance: Tensor, index: Tensor) -> None:
    """Second moments of the residuals of each component, in the form of its covariance."""
    if sums.ndim == 1:
        sums.index_add_(0, index, distance, alpha=1 / residual.shape[1])
    elif sums.ndim == 2:
        sums.index_add_(0, index, residual.square())
    else:
        add_outer_products(sums, residual, index)


def _about(shift: Tensor, squares: Tensor, counts: Tensor) -> Tensor:
    """Covariances about the shifted centers, from second moments about the old ones."""
    moments = squares / counts.clamp_min(1).view(-1, *(1,) * (squares.ndim - 1))
    if squares.ndim == 1:
        return (moments - shift.square().mean(1)).clamp_min(0)
    if squares.ndim == 2:
        return (moments - shift.square()).clamp_min(0)
    return moments.baddbmm_(shift.unsqueeze(2), shift.unsqueeze(1), alpha=-1)


def _first_of_each_class(
    features: Iterable[tuple[Tensor, Tensor]], classes: int, components: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """The first few features of every class, in the order of the stream.

    They stand for their class only where what comes first says nothing about it. Training's passes are such: they are
    not shuffled, but go in the order that the split of the images drew at random. Features in an order of their own (by
    scene, by person) want to be shuffled once.
    """
    room = torch.full((classes,), _SAMPLES_PER_COMPONENT * components)
    for z, y in features:
        labels = y.cpu()
        order = torch.nn.functional.one_hot(labels, classes).cumsum(0).gather(1, labels.unsqueeze(1)).squeeze(1)
        kept = order <= room[labels]
        room = (room - torch.bincount(labels[kept], minlength=classes)).clamp_min(0)
        if kept.any():
            yield z[kept.to(z.device)], y[kept.to(y.device)]
        if not room.any():
            return


def _in_chunks(features: Iterable[tuple[Tensor, Tensor]], least: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same features in batches of at least so many, but for the last."""
    held: list[tuple[Tensor, Tensor]] = []
    for batch in features:
        held.append(batch)
        if sum(len(y) for _, y in held) >= least:
            joined, held = _joined(held), []
            yield joined
            del joined
    if held:
        yield _joined(held)


def _joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(batches) == 1:
        return batches[0]
    return torch.cat([z for z, _ in batches]), torch.cat([y for _, y in batches])


def _keep_farthest(farthest: Tensor, strays: Tensor, distance: Tensor, z: Tensor, index: Tensor) -> None:
    before = farthest.index_select(0, index)
    if not (distance > before).any():  # as in most batches of a pass
        return
    best = farthest.scatter_reduce(0, index, distance, "amax")
    winner = (distance == best[index]) & (distance > before)
    strays[index[winner]] = z[winner]
    farthest.copy_(best)


def _on_cpu(generator: torch.Generator) -> torch.Generator:
    if generator.device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator().manual_seed(seed)
