"""Run by the tests in processes of their own: trains from a folder, and leaves the result there."""

from __future__ import annotations

import atexit
import copy
import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from training_toys import Case, ToyAdversary, generator, make_images, make_split, stop_after

from sfumato.attacks import DecoderAttack, Knowledge, make_target
from sfumato.data import Augment
from sfumato.defenses import (
    CEM,
    Adversary,
    Bottleneck,
    Context,
    DeeperEdge,
    FusedAttention,
    GatedAttention,
    Noise,
    Prune,
    SlotAttention,
    chain,
)
from sfumato.errors import CorruptFileError, Interrupted
from sfumato.information import ClassMixture
from sfumato.models import SplitModel
from sfumato.storage import save_state
from sfumato.training import Runtime, SplitJob, Training, fit, make_fabric


def killed(folder: Path) -> None:
    """Everything at work, a checkpoint at each step."""
    training = Training(epochs=4, batch_size=5, optimizer="adam", schedule="plateau", patience=0, lr=0.01)
    case = Case(
        chain(Bottleneck(2), Noise(0.1), CEM(0.5, components=2), ToyAdversary(every=2)),
        training,
        make_images(100),
        augment=Augment(crop_padding=2, flip=True, rotation=10),
    )
    outcome = case.run(folder, checkpoint_seconds=0.0)
    save_state(folder / "outcome", {"state": outcome.state, "fit": vars(outcome.fit)})


CASES = {
    # Without batch norm, dropout and noise a mean over shares is the mean over the batch.
    "exact": Case(
        ToyAdversary(every=2),
        Training(epochs=3, batch_size=6, lr=0.05, schedule="cosine", weight_decay=0.01),
        make_images(24),
        split=lambda: make_split(norm=False, dropout=0.0),
    ),
    "random": Case(
        chain(Bottleneck(2), Noise(0.1), CEM(0.5, components=2), ToyAdversary(every=3)),
        Training(epochs=4, batch_size=6, lr=0.05, schedule="plateau", patience=0),
        make_images(25),
        augment=Augment(crop_padding=2, flip=True, rotation=0),
        select_from=1,
    ),
    # What goes is decided by each process alone, and players learn ahead together.
    "pruned": Case(
        chain(
            *(DeeperEdge(1), Bottleneck(2), Noise(0.1), Prune(0.5)),
            Adversary(objective="mse", depth=0, width=3, pretrain_epochs=1),
        ),
        Training(epochs=4, batch_size=6, lr=0.05, schedule="cosine"),
        make_images(25),
        select_from=0,
    ),
    # Running weights and variances that follow each step; full covariances hold for an epoch.
    **{
        variant: Case(
            CEM(0.5, components=2, schedule="constant", variant=variant),
            Training(epochs=3, batch_size=6, lr=0.05, schedule="constant"),
            make_images(24),
            split=lambda: silent_split(),
        )
        for variant in ("isotropic", "diagonal", "full")
    },
    **{
        name: Case(
            surrogate(2.0, hidden=5, schedule="constant", attention_lr=0.1, **arguments),
            Training(epochs=2, batch_size=6, lr=0.05, schedule="constant"),
            make_images(24),
            split=lambda: silent_split(),
        )
        for name, surrogate, arguments in (
            ("gated", GatedAttention, {}),
            ("slots", SlotAttention, {"slots": 2}),
            ("fused", FusedAttention, {"slots": 2}),
        )
    },
    # The player is no part of the model's loss.
    "beside": Case(ToyAdversary(punish=False), Training(epochs=2, batch_size=6, schedule="constant"), make_images(24)),
}


def silent_split() -> SplitModel:
    """Nothing random, and a channel that is said to add noise."""
    return make_split(norm=False, dropout=0.0).with_parts(noise_variance=0.01)


def data_parallel(folder: Path, processes: int) -> None:
    """Train every case over processes; each leaves what it holds."""
    torch.set_num_threads(1)
    # Called after what is registered later: that the group was left before the process ends.
    atexit.register(lambda: (folder / f"left{fabric.global_rank}").write_text(str(distributed.is_initialized())))
    fabric = make_fabric("cpu", processes=processes)
    for name, case in CASES.items():
        runtime = Runtime(fabric=fabric, folder=folder / name)
        job = case.job(runtime)
        result = fit(job, case.images, case.plan(), runtime)
        learned = {key: job.state_dict()[key] for key in ("optimizer", "players")}
        rate = job._optimizer.param_groups[0]["lr"]
        state = {"weights": job.weights(), "fit": vars(result), "rate": rate, "learned": learned}
        save_state(folder / name / f"outcome{fabric.global_rank}", state)
        if name == "exact":
            check_gradient(job, processes, fabric.global_rank)
        elif name == "slots":
            check_surrogate(job, processes, fabric.global_rank)
        elif name == "random":
            check_broadcast(job, processes, fabric.global_rank)
    attacked(folder / "attacked", fabric)
    judged(folder / "judged", fabric)
    fabric.barrier()
    stopped(folder / "stopped", Runtime(fabric=fabric))
    fabric.barrier()


def attacked(folder: Path, fabric: Fabric) -> None:
    """A decoder over processes whose channels draw different noise."""
    rank, model = fabric.global_rank, make_split()
    model = chain(Bottleneck(2), Noise(0.3)).bind(model, generator=generator(5)).defend(model)
    target = make_target(model, "black-box", generator=generator(rank))
    knowledge = Knowledge(make_images(24), make_images(6, seed=1), "auxiliary")
    spec = DecoderAttack(depth=0, width=4, epochs=6, batch_size=8, lr=0.05)
    learned = spec.run(target, knowledge, generator=generator(3), runtime=Runtime(fabric=fabric))
    made = learned.invert(torch.ones(3, 2, 4, 4))
    save_state(folder / f"outcome{rank}", {"made": made, "epoch": learned.figures["epoch_kept"]})


def judged(folder: Path, fabric: Fabric) -> None:
    """Scores on which the processes do not agree, as where their validation draws noise."""
    case, runtime = dataclasses.replace(CASES["exact"], select_from=0), Runtime(fabric=fabric)
    job = case.job(runtime)
    job.epoch_end = lambda epoch: {"score": float((epoch == 1) == (fabric.global_rank == 0))}  # type: ignore[method-assign]
    kept = fit(job, case.images, case.plan(), runtime).epoch_kept
    save_state(folder / f"outcome{fabric.global_rank}", {"kept": kept})


def stopped(folder: Path, runtime: Runtime) -> None:
    """Only one process is asked to stop: all do. Checkpoints of different steps are refused by all."""
    case = CASES["random"]
    at = runtime.at(folder)
    asked = stop_after(6) if runtime.fabric.global_rank == 0 else stop_after(10**9)
    with pytest.raises(Interrupted):
        fit(case.job(at), case.images, case.plan(), dataclasses.replace(at, should_stop=asked))
    runtime.fabric.barrier()
    earlier = (folder / "checkpoint.safetensors").read_bytes()
    result = fit(case.job(at), case.images, case.plan(), at)
    save_state(folder / f"outcome{runtime.fabric.global_rank}", {"fit": vars(result)})
    runtime.fabric.barrier()
    if runtime.fabric.global_rank == 0:
        (folder / "checkpoint.safetensors").write_bytes(earlier)
    runtime.fabric.barrier()
    with pytest.raises(CorruptFileError, match="different steps"):
        fit(case.job(at), case.images, case.plan(), at)


def check_gradient(job: object, processes: int, rank: int) -> None:
    """One more step: the gradient that each process then has is that of the whole batch."""
    x, y = make_images(6, seed=4).images / 255, make_images(6, seed=4).labels
    twin = make_split(norm=False, dropout=0.0)
    twin.load_state_dict(job.split.state_dict())  # type: ignore[attr-defined]
    decoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.Sigmoid())
    decoder.load_state_dict(job.defense.decoder.state_dict())  # type: ignore[attr-defined]
    z = twin.edge(x)
    loss = nn.functional.cross_entropy(twin.cloud(z), y)
    loss = loss - 0.5 * nn.functional.mse_loss(decoder(z), x.flatten(1))
    expected = torch.autograd.grad(loss, list(twin.parameters()))
    job._objective.train()  # type: ignore[attr-defined]
    job.step(x[rank::processes], y[rank::processes], 0, 0)  # type: ignore[attr-defined]
    for parameter, grad in zip(job.split.parameters(), expected, strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def check_surrogate(job: SplitJob, processes: int, rank: int) -> None:
    """Gradients are means over shares that each see themselves alone; a step starts at the first one's averages."""
    images = make_images(6, seed=4)
    x, y = images.images / 255, images.labels
    running = dict(job.defense.named_buffers())
    for step in range(2):
        running = {name: value.clone() for name, value in running.items()}
        shares = [seen_alone(job, running, x[r::processes], y[r::processes], step) for r in range(processes)]
        job.step(x[rank::processes], y[rank::processes], 1, step)
        found = [p.grad for module in (job.split, job.defense) for p in module.parameters()]
        for own, *grads in zip(found, *(grads for grads, _ in shares), strict=True):
            torch.testing.assert_close(own, torch.stack(grads).mean(0), rtol=1e-4, atol=1e-6)
        assert float(job.defense.path.alpha.grad.abs()) > 1e-4  # type: ignore[union-attr, operator]
        for name, value in job.defense.named_buffers():
            torch.testing.assert_close(value, shares[rank][1][name])
        running = shares[0][1]
    apart = [name for name, value in shares[1][1].items() if not torch.allclose(value.double(), running[name].double())]
    assert "spreads.value" in apart


def seen_alone(
    job: SplitJob, running: dict[str, Tensor], x: Tensor, y: Tensor, step: int
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradients of model and path on one share, and the running averages after it."""
    split, defense = copy.deepcopy((job.split, job.defense))
    for name, value in defense.named_buffers():
        value.copy_(running[name])
    z = split.edge(x)
    ctx = Context(x, y, z, z, split.cloud(z), 1, step, 0.05, generator(0))
    loss = nn.functional.cross_entropy(ctx.logits, y) + sum(defense.losses(ctx).values())
    grads = torch.autograd.grad(loss, list(split.parameters()))
    (player,) = defense.players()
    # The player learns after the step, from the averages that the share has entered.
    learned = torch.autograd.grad(player.loss(ctx.detached()), list(defense.parameters()))
    return [*grads, *learned], dict(defense.named_buffers())


def check_broadcast(job: SplitJob, processes: int, rank: int) -> None:
    """Batch norm's statistics are the first process's at each step, mixtures stay where they are."""
    images = make_images(6, seed=4)
    mean = next(value for name, value in job.split.named_buffers() if name.endswith("running_mean"))
    (mixture,) = (module for module in job.defense.modules() if isinstance(module, ClassMixture))
    mean.fill_(100.0 * rank)
    mixture.counts.fill_(50.0 + rank)
    job.step(images.images[rank::processes] / 255, images.labels[rank::processes], 1, 0)
    assert float(mean.abs().max()) < 50
    assert mixture.counts.tolist() == [50.0 + rank] * len(mixture.counts)


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        killed(Path(sys.argv[2]))
    else:
        data_parallel(Path(sys.argv[2]), int(sys.argv[3]))
