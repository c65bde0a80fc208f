"""Learned optimizers in the loops that people write: Lightning, Hugging Face-style, several processes."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from learned_opt import MlpRule, MuLO, NormalizedRule, Pretrained
from learned_opt.rules.velo import VeloRule


def untrained(rule=None) -> Pretrained:
    rule = rule or NormalizedRule()
    return Pretrained(rule, rule.init_theta(torch.Generator().manual_seed(0)))


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def make_data() -> TensorDataset:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(192, 6, generator=rng)
    return TensorDataset(x, (x[:, :3] + x[:, 3:]).argmax(1))


@pytest.mark.filterwarnings("ignore")
def test_lightning_module(tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model()
            self.losses: list[float] = []

        def training_step(self, batch, _):
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            total = int(self.trainer.estimated_stepping_batches)
            optimizer = MuLO(self.model, untrained(), num_training_steps=total)
            scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def trainer(epochs: int) -> lightning.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=tmp_path, gradient_clip_val=1.0, **quiet
        )

    module, loader = Module(), DataLoader(make_data(), batch_size=32)
    fit = trainer(3)
    fit.fit(module, loader)
    assert module.losses[-1] < 0.7 * module.losses[0]
    assert fit.optimizers[0].optimizer.inner_step == 18 if hasattr(fit.optimizers[0], "optimizer") else True
    fit.save_checkpoint(tmp_path / "half.ckpt")

    resumed = Module()
    again = trainer(4)
    again.fit(resumed, loader, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    (optimizer,) = again.optimizers
    assert optimizer.inner_step == 24
    assert optimizer.num_training_steps == 24


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", [NormalizedRule(), VeloRule(lstm=8, bank=4)], ids=["mulo-norm", "velo"])
def test_lightning_skips_a_batch_and_unfreezes_a_backbone(tmp_path, rule):
    """And tells a rule that reads it the loss."""
    import lightning
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = make_model()[:2], make_model()[2]
            self.losses: list[float] = []

        def training_step(self, batch, i):
            if i == 2:
                return None  # Lightning's way to skip a batch
            x, y = batch
            loss = F.cross_entropy(self.head(self.backbone(x)), y)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return MuLO(self.head, untrained(rule), num_training_steps=24)

    module = Module()
    before = module.backbone[0].weight.detach().clone()
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_lr=0.5)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(make_data(), batch_size=32))
    assert trainer.optimizers[0].inner_step == 4 * 5
    assert not torch.equal(module.backbone[0].weight, before)
    assert module.losses[-1] < module.losses[0]


def test_hugging_face_style_loop():
    """Named groups with and without decay, a schedule of lambdas, accumulation and clipping, as Trainer does it."""
    model = make_model()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    with pytest.warns(UserWarning, match="guessed"):
        optimizer = MuLO(groups, untrained(), num_training_steps=40)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 5))
    losses, step = [], 0
    for _ in range(14):
        for x, y in DataLoader(make_data(), batch_size=32):
            loss = F.cross_entropy(model(x), y) / 2
            loss.backward()
            losses.append(2 * loss.item())
            step += 1
            if step % 2 == 0 and optimizer.inner_step < 40:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                model.zero_grad()
    assert optimizer.inner_step == 40
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])


class ForTrainer(nn.Module):
    """A model with its loss, as transformers' Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_model()

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_training_steps", [None, 12])
def test_trainer_of_transformers(tmp_path, num_training_steps):
    """Accumulation, evaluation on what is to be kept, and a run that is resumed like one without interruption."""
    transformers = pytest.importorskip("transformers")
    data = [{"x": x, "labels": y} for x, y in make_data()]

    def fit(max_steps: int, **options):
        model = ForTrainer()
        optimizer = MuLO(model, untrained(), num_training_steps=num_training_steps)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        arguments = transformers.TrainingArguments(
            tmp_path,
            max_steps=max_steps,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            eval_strategy="steps",
            eval_steps=6,
            save_steps=6,
            report_to=[],
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            model, arguments, train_dataset=data, eval_dataset=data, optimizers=(optimizer, schedule)
        )
        trainer.train(**options)
        optimizer.eval()
        return model, optimizer, [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]

    model, optimizer, losses = fit(12)
    assert optimizer.inner_step == 12
    assert losses[-1] < losses[0]
    again, resumed, _ = fit(12, resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.inner_step == 12
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        kept = sum(float(model(x[None], y[None])["loss"]) for x, y in make_data()) / len(data)
    assert losses[-1] == pytest.approx(kept, rel=1e-4)


def ddp(rank: int, path: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    x, y = make_data().tensors
    results = []
    for rule in (NormalizedRule(), MlpRule(4)):
        model = nn.parallel.DistributedDataParallel(make_model())
        optimizer = MuLO(model, untrained(rule), num_training_steps=6)
        for _ in range(6):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rank::2]), y[rank::2]).backward()
            optimizer.step()
        results.append([p.detach() for p in model.module.parameters()])
    torch.save(results, f"{path}/rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_of_ddp_equal_one(two_ranks, tmp_path):
    two_ranks(ddp, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    x, y = make_data().tensors
    for rule, one, two in zip((NormalizedRule(), MlpRule(4)), first, second, strict=True):
        model = make_model()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = MuLO(model, untrained(rule), num_training_steps=6)
        for _ in range(6):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        for a, b, c in zip(one, two, model.parameters(), strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c.detach(), rtol=1e-3, atol=1e-4)
